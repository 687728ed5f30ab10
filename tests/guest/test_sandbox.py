"""The sandbox with the real toolchain of a real base; one test compares it with a build in the guest itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.events import Deadline, silent
from kmlab.config.lab import load_lab
from kmlab.host import real_host
from kmlab.host.process.sandbox import Limits, Sandbox
from kmlab.provision import lifecycle
from kmlab.provision.bases.base import Base
from kmlab.provision.bases.toolchain import ensure_toolchain
from kmlab.run.build import source_folder
from kmlab.run.build.make import build_in_guest, build_in_sandbox
from kmlab.run.build.products import BuildResult
from kmlab.run.build.request import plain_request

pytestmark = pytest.mark.guest

HELLO = Path(__file__).parents[2] / "examples/hello"
KBUILD = "obj-m := hello.o\n"


@pytest.fixture
def baked(base: Path) -> Base:
    known = paths.read_json(base / "base.json")
    return Base(base.name, known["release"], known["host_key"])


@pytest.fixture
def toolchain(baked: Base) -> Path:
    return ensure_toolchain(baked.key, baked.release, "test", silent)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(HELLO, tmp_path / "source")


def built(
    baked: Base, toolchain: Path, source: Path, limits: Limits | None = None, seconds: float = 120
) -> BuildResult:
    box = Sandbox(toolchain, source.parent / "builds/hello", "hello", limits or Limits())
    return build_in_sandbox(box, plain_request("hello", source), baked.release, Deadline(seconds), lambda line: None)


def test_the_ko_of_the_sandbox_and_of_the_guest_are_the_same_bytes(
    baked: Base,
    toolchain: Path,
    source: Path,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    (tmp_path / "lab.yaml").write_text("name: sandbox\nguests:\n  debian: {image: debian-12, cpus: 2, memory: 1G}\n")
    lab = load_lab(tmp_path / "lab.yaml")
    with lifecycle.guest_session(real_host(), lab, lab.guest("debian"), silent) as guest:
        assert guest.record.base == baked.key
        deadline = Deadline(300)
        source_folder.sync(guest, "hello", source, deadline)
        there = build_in_guest(guest, plain_request("hello", source), deadline, lambda line: None)
        here = build_in_sandbox(
            Sandbox(toolchain, guest.files.builds / "hello", "hello"),
            plain_request("hello", source),
            baked.release,
            deadline,
            lambda line: None,
        )
        assert there.ok and here.ok
        assert here.images == there.images
        assert "sandbox" in here.how and "sandbox" not in there.how
        delivered = guest.run(["cat", str(source_folder.folder_in_guest("hello") / "hello.ko")], deadline)
        assert delivered.out == here.images["hello.ko"]
    lifecycle.destroy_lab(real_host(), lab, (), all_state=False, report=silent)


def test_a_second_build_compiles_nothing(baked: Base, toolchain: Path, source: Path) -> None:
    first = built(baked, toolchain, source)
    second = built(baked, toolchain, source)
    assert first.ok and "CC [M]" in first.log
    assert second.ok and "CC [M]" not in second.log
    assert second.images == first.images
    (source / "hello.c").write_text((source / "hello.c").read_text() + "/* changed */\n")
    assert "CC [M]" in built(baked, toolchain, source).log


def test_errors_are_told_with_the_path_that_the_guest_would_tell(baked: Base, toolchain: Path, source: Path) -> None:
    (source / "hello.c").write_text("int main(\n")
    failed = built(baked, toolchain, source)
    assert not failed.ok
    assert "/var/lib/kmlab/modules/hello/hello.c:" in failed.log
    assert failed.diagnostics[0].file == "hello.c"


def test_a_makefile_sees_no_home_no_network_and_writes_nowhere_else(
    baked: Base, toolchain: Path, source: Path, tmp_path: Path
) -> None:
    (source / "Kbuild").write_text(
        KBUILD + f"$(info home: $(shell ls -A {Path.home()}; ls -A {tmp_path}))\n"
        "$(info net: $(shell cut -d: -f1 /proc/net/dev | tail -n +3))\n"
        "$(info written: $(shell for f in /usr/x /etc/x ../x /dev/x; do touch $$f && echo $$f; done 2>/dev/null))\n"
    )
    lines = [line.split() for line in built(baked, toolchain, source).log.splitlines()]
    assert ["home:"] in lines
    assert ["net:", "lo"] in lines
    assert ["written:"] in lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bomb() { bomb & bomb & sleep 30; }; bomb 2>/dev/null", "100 processes"),
        ("for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=300M count=99999 2>/dev/null & done; wait", "of memory"),
    ],
)
def test_a_makefile_that_takes_too_much_ends_at_its_limit(
    baked: Base, toolchain: Path, source: Path, line: str, said: str
) -> None:
    (source / "Kbuild").write_text(f"{KBUILD}$(shell {line})\n")
    ended = built(baked, toolchain, source, Limits(processes=100, memory=512 << 20), 60)
    assert not ended.ok
    assert ended.reason is not None and said in ended.reason


def test_an_endless_make_ends_in_time(baked: Base, toolchain: Path, source: Path) -> None:
    (source / "Kbuild").write_text(f"{KBUILD}$(shell while :; do sleep 1; done)\n")
    ended = built(baked, toolchain, source, seconds=3)
    assert not ended.ok
    assert ended.reason is not None and "did not end in time" in ended.reason
