"""First boots that go wrong: one clear error each, and nothing left behind."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kmlab.common import paths
from kmlab.host.hypervisor import hypervisor
from tests.guest.conftest import LAB_YAML, Lab, wait_until


def test_a_package_that_is_not_there_is_named(lab: Lab) -> None:
    lab.write("name: t\nguests:\n  debian: {image: debian-12, packages: [kmlab-no-such-package]}\n")
    answer = lab("up", code=3, timeout=900)
    last = [line for line in answer.err.splitlines() if line.startswith("kmlab: ")]
    assert len(last) == 1 and "could not be baked" in last[0] and "kmlab-no-such-package" in last[0], answer.err
    assert_nothing_left(lab)


def test_a_kernel_that_panics_at_boot_is_not_waited_for(lab: Lab) -> None:
    lab.write('name: t\nguests:\n  debian: {image: debian-12, cmdline: "rdinit=/nothing-here"}\n')
    answer = lab("up", code=3, timeout=900)
    last = [line for line in answer.err.splitlines() if line.startswith("kmlab: ")]
    assert len(last) == 1 and "panicked while it booted" in last[0], answer.err
    assert "Kernel panic" in (lab.state / "failed-boot.log").read_text(errors="replace")
    assert_nothing_left(lab)


def test_a_build_that_is_killed_leaves_no_process_behind(environment: dict[str, str], tmp_path: Path) -> None:
    lab = Lab(LAB_YAML, {**environment, "XDG_CACHE_HOME": str(tmp_path)})
    process = lab.start("image", "build", "debian-12")

    def unpacks() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return any("apt-get" in name for name in descendants(process.pid).values())

    wait_until("apt at work in mmdebstrap's namespace", unpacks)
    running = descendants(process.pid)
    assert any("mmdebstrap" in name for name in running.values())
    process.kill()
    process.communicate(timeout=60)
    wait_until(f"the end of {running}", lambda: not running.keys() & processes().keys())


def descendants(pid: int) -> dict[tuple[int, str], str]:
    """Every process beneath this one, by pid and start, with its command line."""
    every = processes()
    found = {pid}
    while more := {child for (child, _), (parent, _) in every.items() if parent in found} - found:
        found |= more
    return {one: line for one, (_, line) in every.items() if one[0] in found - {pid}}


def processes() -> dict[tuple[int, str], tuple[int, str]]:
    """The parent and the command line of every process, by its pid and its start: the kernel uses pids again."""
    every = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if fields[0] != "Z":  # the first process of a container need not wait for its orphans
                    every[int(entry.name), fields[19]] = int(fields[1]), line
    return every


def assert_nothing_left(lab: Lab) -> None:
    assert not list((lab.state / "labs").glob("t-*/debian/*"))
    assert not hypervisor.processes(paths.work())
    assert not list(paths.work().glob("*/disk.qcow2"))
    assert "Traceback" not in Path(lab.state / "failed-boot.log").read_text(errors="replace")
