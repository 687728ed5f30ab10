"""A guest with devices: its checkpoint, what is plugged in after the restore, and by hand."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import Event, Note
from kmlab.config.lab import Lab, load_lab
from kmlab.provision import hot_plug, lifecycle
from kmlab.provision.guest import GuestRecord
from kmlab.provision.plan.device_setup import QEMU_ARGS, check_devices, place_of
from kmlab.provision.plan.plan import lab_files, make_plan
from kmlab.testing import World
from kmlab.virt.devices.chips import Tpm

GUESTS = """\
name: t
guests:
  g:
    image: debian-12
    devices: [edu, {disk: 16M}, {usb: serial}, serial]
"""


def lab_of(folder: Path, text: str = GUESTS) -> Lab:
    (folder / "lab.yaml").write_text(text)
    return load_lab(folder / "lab.yaml")


def up(world: World, lab: Lab, name: str = "g", *, keep: bool = False) -> tuple[GuestRecord, list[str]]:
    notes: list[str] = []

    def note(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    session = lifecycle.guest_session(world.host, lab, lab.guest(name), note, allow_kept_modules=keep)
    with session as guest:
        return guest.record, notes


def files_of(lab: Lab) -> paths.GuestFiles:
    return lab_files(lab).guest("g")


def test_after_the_restore_only_what_no_checkpoint_has_is_plugged_in(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    up(world, lab)
    asked = world.asked[world.asked.index("restore") :]
    assert [what for what in asked if "device_add" in what or "attach" in what] == [
        "qmp device_add kmlab-edu",
        "qmp device_add kmlab-usb-serial",
    ]
    plugged = hot_plug.read_plugged(files_of(lab))
    assert list(plugged) == ["edu", "disk", "usb-serial", "serial"]
    assert (plugged["edu"].address, plugged["usb-serial"].tty) == ("0000:09:00.0", "/dev/pts/7")
    assert (files_of(lab).root / "device-disk.img").stat().st_size == 16 << 20
    assert (files_of(lab).root / "device-disk.img").stat().st_mode & 0o777 == 0o600


def test_a_guest_is_reused_until_its_devices_change(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    first, _ = up(world, lab)
    again, notes = up(world, lab)
    assert (again.started, notes) == (first.started, [])
    _, notes = up(world, lab_of(xdg, GUESTS.replace("edu, ", "")))
    assert notes == ["restored, because the lab's settings have changed"]


def test_a_device_of_the_machine_makes_another_checkpoint(world: World, xdg: Path) -> None:
    one, _ = up(world, lab_of(xdg))
    other, _ = up(world, lab_of(xdg, GUESTS.replace(", serial]", ", serial, watchdog]")))
    assert one.base == other.base
    assert one.checkpoint != other.checkpoint


def test_a_checkpoint_keeps_no_empty_disk(world: World, xdg: Path) -> None:
    record, _ = up(world, lab_of(xdg))
    assert not list((paths.checkpoints() / record.checkpoint).glob("device-*"))


def test_a_device_goes_and_comes_back_by_its_name(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    hot_plug.remove_device(world.host, lab.guest("g"), record, files_of(lab), "edu")
    assert "qmp device_del kmlab-edu" in world.asked
    assert "edu" not in hot_plug.read_plugged(files_of(lab))
    made = hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), "edu")
    assert (made.name, made.id) == ("edu", "kmlab-edu")
    assert not hot_plug.changed_by_hand(files_of(lab), lab.guest("g"))


def test_a_new_device_gets_a_name_and_an_empty_file(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    made = hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), "nvme: 32M")
    assert (made.name, made.words) == ("nvme", "{nvme: {size: 33554432}}")
    assert (files_of(lab).root / "device-nvme.img").stat().st_size == 32 << 20
    attached = hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), "disk")
    assert attached.name == "disk-2"
    assert world.asked[-1] == "attach disk"


def test_a_disk_that_is_added_after_another_one_went_has_a_name_of_its_own(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    for _ in range(2):
        hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), "disk: {bus: virtio}")
    hot_plug.remove_device(world.host, lab.guest("g"), record, files_of(lab), "disk-2")
    hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), "disk")
    plugged = hot_plug.read_plugged(files_of(lab))
    targets = [ET.fromstring(each.xml).find("target") for each in plugged.values() if each.xml]
    names = [target.get("dev") for target in targets if target is not None]
    assert len(names) == 3 and len(set(names)) == 3


def test_a_run_gets_the_devices_of_lab_yaml_back_and_a_kept_module_stays(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    hot_plug.remove_device(world.host, lab.guest("g"), record, files_of(lab), "edu")
    assert up(world, lab, keep=True)[0].started == record.started
    assert up(world, lab)[1] == ["restored, because its devices were changed"]
    assert "edu" in hot_plug.read_plugged(files_of(lab))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("watchdog", "cannot be plugged into a running guest"),
        ("nvmee", "must be a kind of device, not 'nvmee'"),
        ("disk: {bus: ide}", "'bus' of 'disk'"),
        ("{", "not valid YAML"),
        ("\u001b]0;x", "a character that is not allowed"),
    ],
)
def test_a_wrong_device_is_one_error(world: World, xdg: Path, what: str, message: str) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    with pytest.raises(ConfigError, match=message) as error:
        hot_plug.add_device(world.host, lab, lab.guest("g"), record, files_of(lab), what)
    assert "\x1b" not in error.value.message


def test_what_is_not_there_or_part_of_the_machine_cannot_be_removed(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    record, _ = up(world, lab)
    for name, message in (("eduu", "no device 'eduu'"), ("serial", "part of the machine")):
        with pytest.raises(ConfigError, match=message):
            hot_plug.remove_device(world.host, lab.guest("g"), record, files_of(lab), name)


def test_a_missing_program_is_told_before_anything_is_made(
    world: World, xdg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_of(xdg, GUESTS.replace("devices: [", "devices: [tpm, "))
    monkeypatch.setattr(Tpm, "programs", ("swtpm-is-not-here",))
    with pytest.raises(LabError, match="device 'tpm' needs swtpm-is-not-here, which is not installed") as error:
        up(world, lab)
    assert "swtpm-is-not-here" in (error.value.hint or "")
    assert "start" not in world.asked


def test_a_device_that_the_architecture_does_not_have_is_told_with_its_line(world: World, xdg: Path) -> None:
    lab = lab_of(xdg)
    plan = dataclasses.replace(make_plan(world.host, lab, lab.guest("g")), arch="aarch64")
    with pytest.raises(ConfigError, match=r"lab.yaml:5: guest 'g' is aarch64, which has no device 'serial'"):
        check_devices(plan)


def test_options_of_qemu_need_a_word_from_outside_of_lab_yaml(
    world: World, xdg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_of(xdg, GUESTS + "    qemu_args: [-device, pci-testdev]\n")
    with pytest.raises(LabError, match="can read and write files of this host"):
        up(world, lab)
    monkeypatch.setenv(QEMU_ARGS, "1")
    up(world, lab)
    (machine,) = [machine for machine in world.machines.values() if machine.runs]
    assert "pci-testdev" in machine.xml


CABLE = """\
name: t
guests:
  one: {image: debian-12, devices: [{nic: {network: wire}}]}
  two: {image: debian-12, devices: [nic, {nic: {model: e1000e, network: wire}}]}
"""


def test_the_ends_of_a_cable_know_each_other(xdg: Path) -> None:
    lab = lab_of(xdg, CABLE)
    links = {
        f"{spec.name}/{name}": place_of(lab, spec, name, device, 0).link
        for spec in (lab.guest("one"), lab.guest("two"), lab.guest("one@6.12"), lab.guest("two@6.12"))
        for name, device in spec.named_devices.items()
    }
    one, two = links["one/nic"], links["two/nic-2"]
    assert one is not None and two is not None and one == two[::-1]
    assert links["two/nic"] is None
    assert len({links["one@6.12/nic"], one}) == 2
    assert links["one@6.12/nic"] == (links["two@6.12/nic-2"] or ())[::-1]


def test_a_cable_has_two_ends(xdg: Path) -> None:
    with pytest.raises(ConfigError, match=r"lab.yaml:5: guest 'three': the network 'wire' has more than two"):
        lab_of(xdg, CABLE + "  three: {image: debian-12, devices: [{nic: {network: wire}}]}\n")
