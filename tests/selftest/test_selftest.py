"""Test kmlab's self-test with fake doors: what it tries, what it reports, and what it must not tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import silent
from kmlab.config.lab import load_lab
from kmlab.host.hypervisor.doctor import Finding
from kmlab.report.json_schema import schema
from kmlab.selftest import selftest as tests
from kmlab.selftest.selftest_modules import HELLO, OOPS, OOPS_LINE, PANIC, lab_files
from kmlab.testing import Act, FakeModule, World

OOPS_LOG = (
    "<1>BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "<4>RIP: 0010:selftest_write+0x4/0x10 [selftest_oops]",
    "<4>---[ end trace 0000000000000000 ]---",
)
PANIC_LOG = (
    "<0>Kernel panic - not syncing: selftest: on purpose",
    "<4>CPU: 0 PID: 512 Comm: insmod Tainted: G           OE      6.1.0-0-fake-amd64 #1",
    "<4>Call Trace:",
    "<4> <TASK>",
    "<4> panic+0x118/0x2ed",
    "<4> selftest_give_up+0x14/0x14 [selftest_panic]",
    "<4> do_one_initcall+0x59/0x220",
    "<4> </TASK>",
    "<0>---[ end Kernel panic - not syncing: selftest: on purpose ]---",
)


@pytest.fixture
def world() -> Iterator[World]:
    modules = (
        FakeModule(name=HELLO, load=Act(kernel=("selftest: hello",)), unload=Act(kernel=("selftest: goodbye",))),
        FakeModule(name=OOPS, load=Act(kernel=OOPS_LOG, taint=1 << 7)),
        FakeModule(name=PANIC, load=Act(kernel=PANIC_LOG, ends="lost")),
    )
    with World(*modules) as made:
        yield made


def tried(world: World, folder: Path, *findings: Finding) -> tests.Selftest:
    (folder / "lab").mkdir()
    return tests.selftest(world.host, ["debian-12"], "auto", folder / "lab", findings, silent)


def test_the_lab_loads_and_names_a_line_that_has_the_bug(tmp_path: Path) -> None:
    for name, text in lab_files(["debian-12", "ubuntu-24.04"], "kvm").items():
        paths.write_text(tmp_path / name, text)
    lab = load_lab(tmp_path / "lab.yaml")
    assert {name: spec.image for name, spec in lab.guests.items()} == {
        "debian-12": "debian-12",
        "ubuntu-24-04": "ubuntu-24.04",
        "secure": "debian-12",
    }
    assert lab.accel == "kvm" and lab.guest("secure").secure_boot
    source = (tmp_path / OOPS / f"{OOPS}.c").read_text().splitlines()
    assert "READ_ONCE(nowhere)" in source[OOPS_LINE - 1]


def test_everything_is_tried_and_only_a_crash_without_its_line_is_not_as_expected(xdg: Path, world: World) -> None:
    """The fake module has no debug information, so its crash has no line: that must not count as seen."""
    tested = tried(world, xdg)
    results = {check.what: check.ok for check in tested.checks}
    assert results == {
        "debian-12: start": True,
        "debian-12: hello passes": True,
        "debian-12: oops has its line": False,
        "debian-12: panic is seen": True,
        "debian-12: hello passes after the restore": True,
        "Secure Boot: start": True,
        "Secure Boot: signed module loads": True,
        "Secure Boot: unsigned is refused": True,
    }
    assert not tested.ok
    page = tests.page(tested)
    assert "7 of 8 as expected" in page and "FAILED" in page and "libvirt         9.0.0" in page
    assert not any(machine.runs for machine in world.machines.values()), "its guests are gone"


def test_a_secure_boot_that_refuses_nothing_is_found(xdg: Path, world: World) -> None:
    world.replaced = {"insmod"}
    assert not {c.what: c.ok for c in tried(world, xdg).checks}["Secure Boot: unsigned is refused"]


def test_a_guest_that_does_not_start_is_one_line_with_its_hint_and_the_rest_is_tried(xdg: Path, world: World) -> None:
    world.refusals_once["build-image"] = LabError("the archive is away", "try again")
    tested = tried(world, xdg)
    assert [c.what for c in tested.checks][:2] == ["debian-12: start", "Secure Boot: start"]
    assert tested.checks[0].detail == "the archive is away (hint: try again)"
    assert tested.checks[1].ok


def test_the_document_follows_its_schema(xdg: Path, world: World) -> None:
    finding = Finding("acceleration", "slow", "guests are emulated", ("sudo", "usermod"))
    document = tests.document(tried(world, xdg, finding))
    jsonschema.validate(json.loads(json.dumps(document)), schema("selftest"))
    assert document["findings"][0]["mend"] == []


def test_nothing_tells_who_ran_it_and_where(xdg: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/änne")
    monkeypatch.setenv("LOGNAME", "aenne")
    monkeypatch.setattr("platform.node", lambda: "secret-host.example.org")
    said = (
        "/home/änne/.cache/kmlab: 3 GiB free; aenne has no range in /etc/subuid on secret-host.example.org; "
        "/home/änne-maria stays"
    )
    tested = tried(world, xdg, Finding("cache", "broken", said))
    for text in (tests.page(tested), json.dumps(tests.document(tested), ensure_ascii=False)):
        assert "aenne" not in text and "secret-host" not in text and "/home/änne/" not in text
        assert "~/.cache/kmlab: 3 GiB free; USER has no range in /etc/subuid on HOST; /home/änne-maria" in text
