"""The domain's XML: as the golden files have it, as libvirt's schema wants it, and as libvirt reads it.

After a change that is meant: `rm tests/data/domain/*.xml`, run these tests twice, and look at the difference.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from kmlab.common.errors import HypervisorError
from kmlab.virt import domain
from kmlab.virt.devices.board import name_devices
from kmlab.virt.devices.chips import I2c, SerialPort, Sound, Tpm, Watchdog
from kmlab.virt.devices.host_device import HostUsb, Vfio
from kmlab.virt.devices.nic import Nic
from kmlab.virt.devices.pci import Edu, Ivshmem
from kmlab.virt.devices.storage import Disk, Nvme
from kmlab.virt.devices.usb import Usb
from kmlab.virt.domain import Domain, console_tty, defects, identifier, retarget, to_xml
from kmlab.virt.firmware import Firmware
from tests.places import TEST_DATA

GOLDEN = TEST_DATA / "domain"
FOLDER = Path("/state/labs/lab-abc123/debian")
PLAIN = Firmware(
    code=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
    variables=Path("/usr/share/OVMF/OVMF_VARS_4M.fd"),
    machine="q35",
    smm=False,
    secure=False,
    format="raw",
    why="UEFI without Secure Boot",
)
SMM = Firmware(
    code=Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"),
    variables=Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    machine="q35",
    smm=True,
    secure=True,
    format="raw",
    why="Secure Boot",
)
ARM = Firmware(
    code=Path("/usr/share/AAVMF/AAVMF_CODE.fd"),
    variables=Path("/usr/share/AAVMF/AAVMF_VARS.fd"),
    machine="virt",
    smm=False,
    secure=False,
    format="raw",
    why="UEFI without Secure Boot",
)


QCOW2 = dataclasses.replace(
    SMM,
    code=Path("/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.qcow2"),
    variables=Path("/usr/share/edk2/ovmf/OVMF_VARS_4M.secboot.qcow2"),
    format="qcow2",
    variables_format="qcow2",
)


DEVICES = (
    *(Edu(), Ivshmem(), Nvme(), Nvme(size=64 << 20), Nic(model="e1000e"), Disk(), Disk(bus="scsi"), Disk(bus="sata")),
    *(Usb(), Usb(device="storage", size=16 << 20), Usb(device="serial"), Usb(device="tablet")),
    *(SerialPort(), I2c(), Watchdog(), Sound()),
)


def made(
    *, arch: str = "x86_64", accel: str = "tcg", firmware: Firmware = PLAIN, seed: bool = False, folder: Path = FOLDER
) -> Domain:
    return Domain(
        name="kmlab",
        arch=arch,
        accel=accel,
        cpus=2,
        memory=1 << 30,
        firmware=firmware,
        nvram=folder / "nvram.fd",
        disk=folder / "disk.qcow2",
        console=folder / "console.log",
        agent=folder / "agent",
        seed=folder / "seed.iso" if seed else None,
    )


PLACES = {"nvram": Path("/n"), "disk": Path("/d"), "console": Path("/c"), "agent": Path("/a")}
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def xml(wanted: Domain) -> str:
    return to_xml(wanted, f"/usr/bin/qemu-system-{wanted.arch}")


DOMAINS = {
    "tcg": made(),
    "kvm": made(accel="kvm"),
    "bake": made(seed=True),
    "secure-boot": made(accel="kvm", firmware=SMM),
    "old-qemu": dataclasses.replace(made(), disabled_features=defects("x86_64", "tcg", "QEMU emulator version 7.2.22")),
    "aarch64": made(arch="aarch64", firmware=ARM),
    "aarch64-kvm": made(arch="aarch64", accel="kvm", firmware=ARM),
    "qcow2-firmware": made(accel="kvm", firmware=QCOW2),
    "devices": dataclasses.replace(made(), devices=name_devices(DEVICES)),
    "usb-2": dataclasses.replace(made(), devices=name_devices([Usb(device="storage", version="ehci")])),
    "usb-1": dataclasses.replace(made(), devices=name_devices([HostUsb(id="0403:6001"), Usb(version="uhci")])),
    "plugged-later": dataclasses.replace(made(), devices=name_devices([Edu(), Nvme(), Vfio(address="03:00.0")])),
    "qemu-args": dataclasses.replace(made(), qemu_args=("-device", "pci-testdev")),
    "aarch64-devices": dataclasses.replace(
        made(arch="aarch64", firmware=ARM),
        devices=name_devices([SerialPort(model="pci"), Disk(bus="scsi"), Tpm(model="tis")]),
    ),
}


@pytest.fixture(scope="module")
def driver() -> Iterator[libvirt.virConnect]:
    """libvirt's test driver: its parser and its memory, without any guest."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_equals_its_golden_file(name: str) -> None:
    golden = GOLDEN / f"{name}.xml"
    if not golden.exists():
        golden.write_text(xml(DOMAINS[name]), encoding="utf-8")
        pytest.fail(f"{golden.name} was not there: it is made now; look at it and run the tests again")
    assert xml(DOMAINS[name]) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arch", "accel", "qemu", "disabled"),
    [
        ("x86_64", "tcg", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", ("cx16",)),
        ("x86_64", "tcg", "QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)", ("cx16",)),
        ("x86_64", "tcg", "QEMU emulator version 8.0.0", ()),
        ("x86_64", "tcg", "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", ()),
        ("x86_64", "kvm", "QEMU emulator version 7.2.22", ()),
        ("aarch64", "tcg", "QEMU emulator version 7.2.22", ()),
        ("x86_64", "tcg", "something else", ()),
    ],
)
def test_a_feature_that_an_old_qemu_emulates_wrongly_is_disabled(
    arch: str, accel: str, qemu: str, disabled: tuple[str, ...]
) -> None:
    assert defects(arch, accel, qemu) == disabled


def test_no_golden_file_is_left_without_a_domain() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(DOMAINS)


NEWER = {"qcow2-firmware": 9_002_000}
"""The domains that need a newer libvirt, and its version: hosts with such files have it."""
CHECKED = [name for name in DOMAINS if NEWER.get(name, 0) <= libvirt.getVersion()]


@pytest.mark.parametrize("name", CHECKED)
def test_libvirt_s_own_schema_accepts_it(name: str) -> None:
    validate = shutil.which("virt-xml-validate")
    if validate:  # make setup brings it where the tests run
        argv = [validate, str(GOLDEN / f"{name}.xml"), "domain"]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", DOMAINS)
def test_libvirt_reads_back_what_was_written(name: str, driver: libvirt.virConnect) -> None:
    written = ET.fromstring(xml(DOMAINS[name]))
    defined = driver.defineXML(xml(DOMAINS[name]))
    try:
        back = ET.fromstring(defined.XMLDesc(0))
    finally:
        defined.undefine()
    for path in ("name", "uuid", "memory", "vcpu", "os/type", "os/loader", "os/nvram", "on_reboot", "on_crash"):
        assert back.findtext(path) == written.findtext(path), path
    for path in ("devices/disk/source", "devices/disk/driver", "devices/serial/log", "cpu"):
        original, defined_element = written.find(path), back.find(path)
        assert original is not None and defined_element is not None
        assert original.attrib.items() <= defined_element.attrib.items(), path


def test_a_saved_domain_gets_the_files_of_another_guest(driver: libvirt.virConnect) -> None:
    defined = driver.defineXML(xml(made()))
    try:
        # The test driver drops QEMU's own options; libvirt's QEMU driver saves them.
        read_back = ET.fromstring(defined.XMLDesc(0))
    finally:
        defined.undefine()
    read_back.extend(ET.fromstring(xml(made())).findall(f"{QEMU}commandline"))
    saved = ET.tostring(read_back, encoding="unicode")
    other = Path("/state/labs/lab-abc123/other")
    changed = retarget(
        saved, nvram=other / "n", disk=other / "d", console=other / "c", agent=other / "a", reach="isolated"
    )
    root = ET.fromstring(changed)
    assert root.findtext("os/nvram") == str(other / "n")
    assert [s.get("file") for s in root.findall("devices/disk/source")] == [str(other / "d")]
    assert [log.get("file") for log in root.findall("devices/serial/log")] == [str(other / "c")]
    assert [s.get("path") for s in root.findall("devices/channel/source")] == [str(other / "a")]
    again = driver.defineXML(changed)
    again.undefine()


def test_a_saved_domain_s_disks_all_move_to_the_other_guest() -> None:
    saved = xml(dataclasses.replace(made(), devices=name_devices([Disk(), Usb(device="storage"), SerialPort()])))
    other = Path("/state/labs/lab-abc123/other")
    changed = ET.fromstring(
        retarget(saved, nvram=other / "n", disk=other / "d", console=other / "c", agent=other / "a", reach="isolated")
    )
    files = [source.get("file") for source in changed.findall("devices/disk/source")]
    assert files == [str(other / "d"), str(other / "device-disk.img"), str(other / "device-usb-storage.img")]
    assert [log.get("file") for log in changed.findall("devices/serial/log")] == [str(other / "c")]


def test_libvirt_does_not_query_each_property_of_a_restored_cpu() -> None:
    (override,) = ET.fromstring(retarget(xml(made()), **PLACES, reach="host")).iter(f"{QEMU}del")
    assert override.attrib == {"capability": "cpu-unavailable-features"}


def arguments(text: str) -> list[str]:
    return [arg.attrib["value"] for arg in ET.fromstring(text).iter(f"{QEMU}arg")]


@pytest.mark.parametrize(
    ("reach", "back_end"),
    [
        ("host", "user,id=kmlab-net"),
        ("isolated", "user,id=kmlab-net,restrict=on,ipv6=off"),
        ("none", "user,id=kmlab-net,restrict=on,ipv6=off"),
    ],
)
def test_guests_with_different_networks_have_the_same_card(reach: str, back_end: str) -> None:
    before, after = xml(made()), retarget(xml(made()), **PLACES, reach=reach)
    assert arguments(before)[:2] == ["-netdev", "user,id=kmlab-net"]
    assert arguments(after) == ["-netdev", back_end, *arguments(before)[2:]]
    assert not ET.fromstring(after).findall("devices/interface"), "libvirt's own interface would be open"


def test_a_restored_guest_that_reboots_ends() -> None:
    restored = ET.fromstring(retarget(xml(made()), **PLACES, reach="isolated"))
    assert {restored.findtext(event) for event in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}


def test_a_saved_domain_without_kmlab_s_network_is_refused() -> None:
    saved = xml(made()).replace("user,id=kmlab-net", "user,id=other")
    with pytest.raises(HypervisorError, match="not one of kmlab's"):
        retarget(saved, **PLACES, reach="isolated")


def test_a_saved_pty_and_backing_chain_are_removed() -> None:
    saved = xml(made()).replace('<serial type="pty">', '<serial type="pty"><source path="/dev/pts/3"/>')
    saved = saved.replace('<target dev="vda"', '<backingStore type="file"/><target dev="vda"')
    saved = saved.replace('<console type="pty">', '<console type="pty" tty="/dev/pts/3">')
    changed = retarget(saved, **PLACES, reach="host")
    assert "/dev/pts" not in changed
    assert "backingStore" not in changed


def test_a_saved_domain_that_is_not_kmlab_s_is_refused() -> None:
    with pytest.raises(HypervisorError, match="not one of kmlab's"):
        retarget("<domain><name>other</name></domain>", **PLACES, reach="host")


def test_the_login_console_is_the_virtio_one() -> None:
    live = (
        "<domain><devices>"
        "<console type='pty'><source path='/dev/pts/1'/><target type='serial' port='0'/></console>"
        "<console type='pty'><source path='/dev/pts/2'/><target type='virtio' port='1'/></console>"
        "</devices></domain>"
    )
    assert console_tty(live) == "/dev/pts/2"
    assert console_tty("<domain/>") is None


def test_paths_with_every_kind_of_character_survive() -> None:
    folder = Path("/state/a b & <c> \"d\" 'e' ä")
    root = ET.fromstring(xml(made(folder=folder, seed=True)))
    assert [s.get("file") for s in root.findall("devices/disk/source")] == [
        str(folder / "disk.qcow2"),
        str(folder / "seed.iso"),
    ]
    assert root.findtext("os/nvram") == str(folder / "nvram.fd")


def test_a_base_may_reboot_while_it_is_baked_and_a_guest_may_not() -> None:
    assert ET.fromstring(xml(made(seed=True))).findtext("on_reboot") == "restart"
    assert ET.fromstring(xml(made())).findtext("on_reboot") == "destroy"


def test_the_cpu_is_the_host_s_under_kvm_and_maximum_under_tcg() -> None:
    assert (domain.cpu_model("kvm"), domain.cpu_model("tcg")) == ("host-passthrough", "maximum")


def test_a_name_has_the_same_uuid_everywhere() -> None:
    assert identifier("kmlab") == identifier("kmlab") != identifier("kmlab-other")
