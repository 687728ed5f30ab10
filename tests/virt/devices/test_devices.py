"""Devices as values: their names, what is plugged in while a guest runs, and which sockets are free."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError, LabError
from kmlab.virt.devices import KINDS, Device, board
from kmlab.virt.devices.chips import SerialPort
from kmlab.virt.devices.device import Place, Socket
from kmlab.virt.devices.nic import Nic
from kmlab.virt.devices.pci import Edu, Ivshmem
from kmlab.virt.devices.storage import Disk, Nvme
from kmlab.virt.devices.usb import Usb

PLACE = Place("it", Path("/state/guest"), 3)
PORT = Socket("pci.9")


def test_each_kind_has_a_name_of_its_own() -> None:
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names) and all(names)


def test_devices_are_named_after_their_kind_and_counted() -> None:
    devices = [Nvme(), Edu(), Nvme(), Usb(device="serial"), Usb(), Disk(), Disk(bus="scsi"), Disk(bus="scsi")]
    named = board.name_devices(devices)
    assert list(named) == ["nvme", "edu", "nvme-2", "usb-serial", "usb", "disk", "scsi-disk", "scsi-disk-2"]
    assert [board.place(name, Path("/f"), 0).number for name in named] == [1, 1, 2, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("device", [Edu(), Ivshmem(), Nvme(), Nic(), Usb(device="serial"), Usb(device="audio")])
def test_what_qemu_cannot_save_is_plugged_in_later_by_commands(device: Device) -> None:
    plug = device.plug(PLACE, Socket("usb.0", 15) if device.socket == "usb" else PORT)
    assert not device.in_checkpoint and not device.elements(PLACE)
    assert plug.device is not None and plug.device.arguments["id"] == "kmlab-it"
    assert len(plug.before) == len(plug.after), "what is made for it is removed again"


def test_a_disk_for_nvme_is_opened_before_it_and_closed_after_it() -> None:
    plug = Nvme().plug(PLACE, PORT)
    ((name, arguments),) = plug.before
    assert (name, arguments["file"]) == (
        "blockdev-add",
        {"driver": "file", "filename": "/state/guest/device-it.img"},
    )
    assert plug.device is not None and plug.device.arguments["drive"] == arguments["node-name"]


def test_a_cable_joins_two_ports_of_the_loopback_and_no_cable_leads_nowhere() -> None:
    (wired,) = Nic(network="wire").plug(PLACE._replace(link=(20001, 20002)), PORT).before
    assert (wired.arguments["udp"], wired.arguments["localaddr"]) == ("127.0.0.1:20002", "127.0.0.1:20001")
    (loose,) = Nic().plug(PLACE, PORT).before
    assert loose.arguments["type"] == "hubport"


@pytest.mark.parametrize(("position", "name"), [(0, "vdc"), (23, "vdz"), (24, "vdaa"), (31, "vdah")])
def test_a_disk_has_a_name_at_each_position(position: int, name: str) -> None:
    (element,) = Disk().elements(PLACE._replace(position=position))
    target = element.find("target")
    assert target is not None and target.get("dev") == name


def test_cards_of_two_guests_have_different_addresses() -> None:
    assert PLACE.mac != PLACE._replace(folder=Path("/state/other")).mac
    assert PLACE.mac.startswith("52:54:00:") and len(PLACE.mac) == 17


def test_shared_memory_lies_above_the_guests_that_share_it() -> None:
    (private,), (shared,) = Ivshmem().plug(PLACE, PORT).before, Ivshmem(shared="both").plug(PLACE, PORT).before
    assert private.arguments["mem-path"] == "/state/guest/device-it.img"
    assert shared.arguments["mem-path"] == "/state/memory-both.img"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([Edu()] * 17, "17 devices"),
        ([Usb(), Usb(version="ehci")], "ehci and xhci"),
        ([SerialPort()] * 4, "4 isa serial ports"),
        ([Disk(bus="sata")] * 7, "7 sata disks"),
    ],
)
def test_a_machine_has_limits(devices: list[Device], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        board.check_devices(devices)


def live(*elements: str) -> str:
    return f"<domain><devices>{''.join(elements)}</devices></domain>"


def port(index: int) -> str:
    return (
        f"<controller type='pci' index='{index}' model='pcie-root-port'><address type='pci' bus='0x00'/></controller>"
    )


USED = "<disk><address type='pci' bus='0x01'/></disk>"


def test_the_last_free_port_is_taken() -> None:
    running = live(port(1), port(2), port(3), USED)
    assert board.free_socket("pci", running, []) == Socket("pci.3")
    assert board.free_socket("pci", running, [Socket("pci.3")]) == Socket("pci.2")
    with pytest.raises(LabError, match="no free PCI port"):
        board.free_socket("pci", running, [Socket("pci.3"), Socket("pci.2")])


def test_a_usb_port_is_taken_from_the_end() -> None:
    xhci = "<controller type='usb' model='qemu-xhci'/>"
    used = "<input><address type='usb' bus='0' port='15'/></input>"
    assert board.free_socket("usb", live(xhci), []) == Socket("usb.0", 15)
    assert board.free_socket("usb", live(xhci, used), [Socket("usb.0", 14)]) == Socket("usb.0", 13)
    with pytest.raises(LabError, match="no USB controller"):
        board.free_socket("usb", live("<controller type='usb' model='none'/>"), [])
