"""Test how programs run: their output, their end, and that no process stays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline
from kmlab.host.process import command


def test_both_streams_come_in_order() -> None:
    done = command.run(["sh", "-c", "echo one; echo two >&2; echo three"], deadline=Deadline(5))
    assert (done.code, done.output) == (0, "one\ntwo\nthree\n")


def test_lines_are_reported_immediately() -> None:
    heard: list[str] = []
    command.run(["printf", "10%%\\r20%%\\r\\nlast\\n\\n"], deadline=Deadline(5), on_line=heard.append)
    assert heard == ["10%", "20%", "last"]


def test_an_unexpected_exit_code_is_an_error_with_the_last_output() -> None:
    with pytest.raises(CommandFailed, match="sh ended with code 3: it broke") as caught:
        command.run(["sh", "-c", "echo it broke; exit 3"], deadline=Deadline(5), hint="mend it")
    assert (caught.value.code, caught.value.tail, caught.value.hint) == (3, "it broke\n", "mend it")
    assert command.run(["sh", "-c", "exit 3"], deadline=Deadline(5), accept=(3,)).code == 3


def test_each_program_is_observed_as_a_line_to_paste(tmp_path: Path) -> None:
    (tmp_path / "in put").write_text("given")
    seen: list[command.ProgramRun] = []
    script = 'test "$A" = "b c" && test "$(cat)" = given && pwd'
    command.observe_programs(seen.append)
    try:
        done = command.run(
            ["sh", "-c", script],
            deadline=Deadline(5),
            cwd=tmp_path,
            environment={"A": "b c"},
            stdin=tmp_path / "in put",
        )
        with pytest.raises(CommandFailed):
            command.run(["sh", "-c", "exit 3"], deadline=Deadline(5))
        with pytest.raises(CommandFailed):
            command.run(["sleep", "60"], deadline=Deadline(0.1))
    finally:
        command.observe_programs(None)
    assert [(program.code, program.ok) for program in seen] == [(0, True), (3, False), (None, False)]
    assert all(program.seconds > 0 for program in seen)
    pasted = subprocess.run(["sh", "-c", seen[0].command], capture_output=True, text=True, check=True)
    assert pasted.stdout == done.output


def test_a_program_that_fails_on_a_full_disk_gives_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as error:
        command.run(["dd", "if=/dev/zero", "of=/dev/full", "bs=1", "count=1"], deadline=Deadline(10))
    assert "No space left on device" in error.value.message
    assert error.value.hint is not None and "kmlab image prune" in error.value.hint


def test_a_missing_program_is_reported_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="qemu-img is not installed") as caught:
        command.run(["qemu-img", "--version"], deadline=Deadline(5))
    assert caught.value.hint is not None and "qemu-utils" in caught.value.hint


def test_every_child_ends_at_the_deadline(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end in time"):
        command.run(["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/pid; wait"], deadline=Deadline(0.3))
    assert time.monotonic() - began < 5
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_a_program_and_its_children_end_when_kmlab_is_killed(tmp_path: Path) -> None:
    inner = f"echo $$ > {tmp_path}/one; sh -c 'echo $$ > {tmp_path}/two; trap \"\" TERM HUP; sleep 300' & wait"
    program = (
        f"from kmlab.host.process import command; command.run(['sh', '-c', {inner!r}], deadline=command.Deadline(300))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    names = [tmp_path / "one", tmp_path / "two"]
    while not all(name.exists() and name.read_text().strip() for name in names):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = Deadline(20)
    while any(_runs(int(name.read_text())) for name in names):
        assert not deadline.passed
        time.sleep(0.01)


def test_background_processes_end_with_their_program(tmp_path: Path) -> None:
    command.run(["sh", "-c", f"sleep 300 > /dev/null 2>&1 & echo $! > {tmp_path}/left"], deadline=Deadline(20))
    deadline = Deadline(20)
    while _runs(int((tmp_path / "left").read_text())):
        assert not deadline.passed
        time.sleep(0.01)


def test_a_program_that_ignores_sigterm_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed):
        command.run(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], deadline=Deadline(0.2))
    assert time.monotonic() - began < 10


def test_input_folder_environment_and_files_are_passed_on(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("words\n")
    with given.open() as file, command.inheritable(file.fileno()) as handle:
        line = f"cat; pwd; echo $KMLAB_X; cat /proc/self/fd/{handle}"
        done = command.run(
            ["sh", "-c", line],
            deadline=Deadline(5),
            cwd=tmp_path,
            environment={"KMLAB_X": "x"},
            stdin=given,
            pass_files=(handle,),
        )
    assert done.output == f"words\n{tmp_path}\nx\nwords\n"


_DESCRIPTORS = [sys.executable, "-c", "import os; print(*[n for n in os.listdir('/proc/self/fd') if int(n) > 2])"]
"""Prints those that are open besides standard input, output and error; the listing itself is the lowest free one."""


def test_programs_find_the_low_descriptors_free(tmp_path: Path) -> None:
    # dash(1) understands one digit after >&, so a program that starts it relies on 3 to 9.
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((tmp_path / "file").open("w")) for _ in range(50)]
        handle = stack.enter_context(command.inheritable(files[0].fileno()))
        done = command.run(_DESCRIPTORS, deadline=Deadline(5), pass_files=(handle,))
        open_there = sorted(map(int, done.output.split()))
        assert open_there[0] == 3 and len(open_there) == 3
        assert all(number >= 64 for number in open_there[1:])
        with command.Conversation(_DESCRIPTORS, {}) as conversation:
            assert conversation.listen(Deadline(5)) == "3"


def test_a_low_descriptor_is_never_passed_to_a_program(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(ValueError, match="too low to be inherited"):
        command.run(["true"], deadline=Deadline(5), pass_files=(file.fileno(),))


def test_no_program_waits_for_the_user_s_terminal() -> None:
    assert command.run(["cat"], deadline=Deadline(5)).output == ""


def test_bytes_that_are_not_text_are_shown_and_do_not_raise() -> None:
    assert command.run(["printf", "\\377\\n"], deadline=Deadline(5)).output == "\ufffd\n"


def test_a_conversation_answers_line_by_line() -> None:
    with command.Conversation(["cat"], {}) as cat:
        assert cat.ask("one", Deadline(5)) == "one"
        assert cat.ask("two", Deadline(5)) == "two"


def test_a_conversation_with_an_ended_program_gives_the_empty_text() -> None:
    with command.Conversation(["sh", "-c", "echo gone wrong >&2; exit 1"], {}) as program:
        assert program.ask("hello", Deadline(5)) == ""
        assert program.last_words() == "gone wrong"


def test_a_conversation_s_program_ends_with_its_block(tmp_path: Path) -> None:
    with command.Conversation(["sh", "-c", "echo $$; read line"], {}) as program:
        pid = int(program.listen(Deadline(5)))
        assert _runs(pid)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
