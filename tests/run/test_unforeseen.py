"""Test unforeseen errors in each thread of a run: they are lab errors with exit code 3, and never a pass."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from kmlab.cli import app
from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError, unexpected
from kmlab.common.events import Deadline, silent
from kmlab.config.lab import GuestSpec, Lab
from kmlab.diagnosis.console import ConsoleMonitor
from kmlab.host.channel.agent import AgentShell
from kmlab.kernel.log.records import ConsoleReader
from kmlab.provision import lifecycle
from kmlab.run import parallel, run
from kmlab.run.build.request import plain_request
from kmlab.run.build.sandbox_build import BuildCache, SandboxBuild
from kmlab.run.parallel import MayContinue
from kmlab.testing import RELEASE
from tests.host.process.test_sandbox import guest_record
from tests.story import Go

ERRORS = (
    (OSError(28, "No space left on device", "/tmp/x\x1b"), "No space left on device"),
    (MemoryError(), "this host has no memory left for it"),
    (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
    (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "surrogates not allowed"),
    (AssertionError(), "AssertionError"),
)
each_error = pytest.mark.parametrize(("error", "message"), ERRORS, ids=lambda value: type(value).__name__)


@each_error
def test_an_unforeseen_error_becomes_a_lab_error(error: Exception, message: str) -> None:
    wrapped = unexpected(error, "it could not go on")
    assert isinstance(wrapped, LabError) and wrapped.exit_code == 3
    assert wrapped.message.startswith("it could not go on: ") and message in wrapped.message


def test_an_error_of_kmlab_stays_unchanged() -> None:
    ours = ConfigError("lab.yaml:3: no")
    assert unexpected(ours, "it could not go on") is ours


@each_error
@pytest.mark.parametrize("where", ["sandbox_build.build_in_sandbox", "source_tree.read_folder"])
def test_a_build_thread_passes_on_its_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lifecycle, "toolchain_for", lambda *_: tmp_path)
    monkeypatch.setattr(f"kmlab.run.build.{where}", fail)
    files = paths.GuestFiles(tmp_path / "guest")
    request = plain_request("hello", lab.folder / "hello")
    under = SandboxBuild(lab, files, request, lambda accel: 60.0, silent, BuildCache())
    with under.under_way(guest_record(release=RELEASE)):
        assert under.in_sandbox()
        with pytest.raises(LabError, match="hello could not be built") as caught:
            under.wait()
    assert message in caught.value.message and caught.value.__cause__ is error


@each_error
def test_an_error_of_one_run_is_its_outcome_and_others_continue(
    go: Go, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "run_steps", fail)
    result = go()
    assert (result.outcome, result.ok) == ("error", False)
    assert message in (result.reason or "")
    assert result.directory is not None
    assert "in fail\n" in (result.directory / "traceback.txt").read_text()


@each_error
def test_a_failed_console_monitor_ends_the_run_as_an_error(
    go: Go, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(self: ConsoleReader, chunk: bytes) -> None:
        raise error

    monkeypatch.setattr(ConsoleReader, "feed", fail)
    result = go()
    assert (result.outcome, result.ok) == ("error", False)
    assert "the guest's console could not be read any more" in (result.reason or "") and message in (
        result.reason or ""
    )


def test_a_console_that_cannot_be_opened_is_not_a_silent_console(tmp_path: Path) -> None:
    with ConsoleMonitor(tmp_path / "absent") as witness:
        assert witness.over.wait(30)
        with pytest.raises(LabError, match="No such file"):
            witness.finish(None)


@each_error
def test_parallel_guests_continue_without_the_one_that_failed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    done: list[str] = []

    def work(spec: GuestSpec, go_on: MayContinue) -> None:
        if spec.name == "debian":
            raise error
        done.append(spec.name)

    specs = list(lab.guests.values())
    with pytest.raises(LabError) as caught:
        parallel._Workers(lab, specs, work, silent).finish(1)
    assert message in caught.value.message and caught.value.__cause__ is error
    assert done == [spec.name for spec in specs if spec.name != "debian"]


def test_a_command_of_an_agent_without_a_reader_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: AgentShell, pending: bytearray) -> None:
        raise MemoryError

    monkeypatch.setattr(AgentShell, "_dispatch", fail)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    ours, theirs = socket.socketpair()
    with contextlib.closing(AgentShell(ours)) as shell, theirs:
        theirs.sendall(b"anything")
        assert not shell.greet(Deadline(0.01))
        shell._reader.join(30)
        assert shell.run("true", Deadline(60)).lost


@each_error
def test_the_program_prints_one_line_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("kmlab: ") and "Traceback" not in err and "\x1b" not in err
