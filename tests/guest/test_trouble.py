"""Trouble in the middle: a dead guest, ^C, kill -9, two kmlabs at once. The next command works; nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.host.disk import disks
from tests.guest.conftest import REPOSITORY, Answer, Lab, interrupt, to_be_run, wait_until

HELLO = str(REPOSITORY / "examples/hello")
PANIC = str(REPOSITORY / "examples/panic")


@pytest.fixture(scope="module", autouse=True)
def mending(
    repository: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Lab, Callable[[], Answer]] | None]:
    """A lab that begins to start its guest from a damaged checkpoint, in a cache of its own, while the others go on."""
    if not to_be_run(request, "test_a_checkpoint_that_does_not_restore_is_made_anew_once"):
        yield None
        return
    key = repository("up", "--json").json["guests"][0]["checkpoint"]
    cache = Path(tempfile.mkdtemp(prefix="kmc", dir="/tmp"))
    own = cache / "kmlab"
    (own / "checkpoints").mkdir(parents=True)
    for name in ("bases", "images"):
        (own / name).symlink_to(paths.cache_home() / name)
    spoil(Path(shutil.copytree(paths.checkpoints() / key, own / "checkpoints" / key)) / "memory")
    lab = Lab(tmp_path_factory.mktemp("mending") / "lab.yaml", {**repository.environment, "XDG_CACHE_HOME": str(cache)})
    lab.write("name: mending\nguests:\n  debian: {image: debian-12, cpus: 2, memory: 1G}\n")
    with lab.beside("up", "--json") as ended:
        yield lab, ended
    shutil.rmtree(cache, ignore_errors=True)


def spoil(memory: Path) -> None:
    """Damage the middle of it, as if it had been saved like that: its record has the digest of the damaged file."""
    status = memory.stat()
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        file.seek(status.st_size // 2)
        file.write(os.urandom(1 << 20))
    os.utime(memory, ns=(status.st_atime_ns, status.st_mtime_ns))
    memory.chmod(0o444)
    record = memory.with_name("checkpoint.json")
    about = paths.read_json(record)
    about["sha256"] = about["files"][memory.name]["sha256"] = disks.digest(memory)
    paths.write_json(record, about)


def test_a_panicked_guest_is_stopped_at_once_and_the_next_run_works(lab: Lab) -> None:
    result = lab("run", PANIC, "-p", "reason=enough", "--json", code=1).result
    assert result["outcome"] == "panic" and not result["guest_survived"]
    assert "enough" in result["title"]
    assert any("end Kernel panic" in record["text"] for record in result["log"]), "the log is complete"
    assert lab("status", "--json").json["guests"][0]["state"] == "stopped"
    assert not list((lab.state / "labs").glob("t-*/debian/guest.json"))
    assert lab("run", HELLO, "--json").result["outcome"] == "pass"


def test_a_guest_that_is_killed_in_the_middle_of_a_step_is_lost_and_the_next_run_works(lab: Lab) -> None:
    pid = lab("up", "--json").json["guests"][0]["pid"]
    run = lab.start("run", HELLO, "--exercise", "sleep 100", "--json")
    wait_until("the module to say hello", lambda: "Hello, world." in lab("log").out, 180)
    os.kill(pid, signal.SIGKILL)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert '"outcome": "lost"' in out
    assert lab("run", HELLO, "--json").result["outcome"] == "pass"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_cut_off_leaves_a_lab_that_the_next_run_uses(lab: Lab, number: signal.Signals) -> None:
    lab("up")
    run = lab.start("run", HELLO, "--exercise", "sleep 100")
    wait_until("the module to say hello", lambda: "Hello, world." in lab("log").out, 180)
    code, out = interrupt(run, number)
    assert code == (130 if number == signal.SIGINT else -9), out
    assert "Traceback" not in out
    after = lab("run", HELLO, "--json")
    assert after.result["outcome"] == "pass"
    assert "restored, because its last run was interrupted" in after.err
    lab("destroy")
    assert not [p for p in (lab.state / "labs").glob("t-*") if p.exists()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_restore_that_is_cut_off_leaves_nothing_that_destroy_does_not_clear(lab: Lab, number: signal.Signals) -> None:
    for delay in (0.4, 0.9, 1.6):
        up = lab.start("reset")
        time.sleep(delay)
        code, out = interrupt(up, number)
        assert "Traceback" not in out
        assert code in (0, 130, -9)
    lab("destroy")
    folder = lab.state / "labs"
    assert not list(folder.glob("t-*"))
    assert lab("up", "--json").json["guests"][0]["state"] == "clean"


def test_a_half_made_checkpoint_is_cleared_away_by_the_next_command(lab: Lab) -> None:
    lab.write("name: t\nguests:\n  debian: {image: debian-12, memory: 640M}\n")
    up = lab.start("up")
    wait_until("the base to boot", lambda: list(paths.work().glob("*/console.log")), 60)
    time.sleep(1)
    interrupt(up, signal.SIGKILL)
    (half,) = [path.parent for path in paths.work().glob("*/console.log")]
    lab("destroy")
    assert not half.exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(half).encode() in _words(p)]


def test_another_kmlab_in_the_same_guest_waits_and_says_so(lab: Lab) -> None:
    lab("up")
    run = lab.start("run", HELLO, "--exercise", "sleep 8")
    wait_until("the module to say hello", lambda: "Hello, world." in lab("log").out, 180)
    second = lab("run", HELLO, "--json")
    assert second.result["outcome"] == "pass"
    assert "waiting for another kmlab (process" in second.err
    run.communicate(timeout=60)
    assert run.returncode == 0


def test_a_checkpoint_that_does_not_restore_is_made_anew_once(mending: tuple[Lab, Callable[[], Answer]]) -> None:
    lab, ended = mending
    answer = ended()
    assert answer.code == 0, answer.err
    assert "rebuilding it" in answer.err
    assert lab("ssh", "--", "echo", "up").out == "up\n"


def _words(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
