"""Test the channel to a guest's agent, with the real program at the other end of a terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import secrets
import select
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline
from kmlab.config import catalog
from kmlab.host.channel import agent
from kmlab.host.channel.agent import AgentShell
from kmlab.host.channel.ssh import Shell


class Port:
    """What QEMU is to both ends: it passes bytes on between a socket's client and the agent."""

    def __init__(self, path: Path, program: Path) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self._slave, self._program = slave, program
        self.begin()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Start an agent, as systemd does once more where one has died."""
        self.agent = subprocess.Popen([self._program, os.ttyname(self._slave)], stderr=subprocess.PIPE)

    def _serve(self) -> None:
        while not self._over.is_set():
            if not select.select([self._server], [], [], 0.05)[0]:
                continue
            client, _ = self._server.accept()
            with client:
                while not self._over.is_set():
                    ends: list[socket.socket | int] = [client, self.master]
                    ready, _, _ = select.select(ends, [], [], 0.05)
                    if client in ready:
                        # Who leaves with something unread resets the connection: unix_release_sock() in the kernel.
                        content = b""
                        with contextlib.suppress(ConnectionResetError):
                            content = client.recv(4096)
                        if not content:
                            break
                        os.write(self.master, content)
                    if self.master in ready:
                        content = os.read(self.master, 4096)
                        with contextlib.suppress(ConnectionError):
                            client.sendall(content)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._server.close()
        self.agent.kill()
        self.agent.communicate()
        os.close(self.master)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("agent") / "agent"
    source = catalog.agent_source()
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-x", "c", "-o", target, "-"], input=source.encode(), check=True
    )
    return target


@pytest.fixture
def port(program: Path, tmp_path: Path) -> Iterator[Port]:
    port = Port(tmp_path / "socket", program)
    yield port
    port.close()


@pytest.fixture
def path(port: Port, tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def shell(path: Path) -> Iterator[Shell]:
    with agent.connected(path, Deadline(30)) as shell:
        yield shell


def test_a_command_s_code_and_both_of_its_streams_come_back(shell: Shell) -> None:
    answer = shell.run("echo out; echo err >&2; exit 3", Deadline(30))
    assert (answer.code, answer.out, answer.err, answer.lost) == (3, b"out\n", b"err\n", False)


def test_a_signal_gives_the_exit_code_of_a_shell(shell: Shell) -> None:
    assert shell.run("kill -9 $$", Deadline(30)).code == 137


def test_input_and_output_arrive_complete(shell: Shell) -> None:
    given = secrets.token_bytes(3_000_000)
    answer = shell.run("cat", Deadline(60), data=given)
    assert answer.ok and answer.out == given


def test_a_command_that_does_not_read_its_input_still_ends(shell: Shell) -> None:
    assert shell.run("true", Deadline(30), data=bytes(1_000_000)).ok
    assert shell.run("echo here", Deadline(30)).text == "here\n"


def test_commands_run_in_parallel(shell: Shell, tmp_path: Path) -> None:
    codes: list[int | None] = []
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 7"
    waiting = threading.Thread(target=lambda: codes.append(shell.run(wait, Deadline(30)).code))
    waiting.start()
    assert shell.run(f"touch {tmp_path}/go", Deadline(30)).ok
    waiting.join()
    assert codes == [7]


def test_output_is_reported_immediately(shell: Shell, tmp_path: Path) -> None:
    def hear(chunk: bytes) -> None:
        (tmp_path / "heard").touch()

    line = f"echo first; while [ ! -e {tmp_path}/heard ]; do sleep 0.02; done; echo second"
    assert shell.run(line, Deadline(30), on_output=hear).out == b"first\nsecond\n"


def test_the_agent_reads_files_itself_each_after_its_header(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1\n")
    (tmp_path / ".two").write_text("2\n")
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    answer = shell.read_files([f"{tmp_path}/one", f"{tmp_path}/none", f"{tmp_path}/.[!.]*"], Deadline(30))
    assert (answer.code, answer.text) == (0, f"==> {tmp_path}/one <==\n1\n\n==> {tmp_path}/.two <==\n2\n\n")
    assert len(shell.read_files([f"{tmp_path}/large"], Deadline(30)).out) == 300_000 + len(
        f"==> {tmp_path}/large <==\n\n"
    )
    assert shell.read_files([], Deadline(30)).out == b""


def test_the_kernel_s_log_is_read_from_the_opening_of_the_connection_on(shell: Shell) -> None:
    answer = shell.kernel_log(Deadline(30))
    assert answer.code in (0, errno.ENODEV, errno.EPIPE)
    assert shell.run("echo here", Deadline(30)).text == "here\n"


def test_a_command_that_does_not_end_is_abandoned_at_its_deadline_or_on_request(shell: Shell) -> None:
    assert shell.run("echo begun; sleep 1000", Deadline(0.5)).out == b"begun\n"
    abandon = threading.Event()
    abandon.set()
    assert shell.run("sleep 1000", Deadline(1000), abandon=abandon).code is None
    assert shell.run("echo here", Deadline(30)).text == "here\n"


def test_no_process_outlives_its_connection(path: Path, tmp_path: Path) -> None:
    with agent.connected(path, Deadline(30)) as shell:
        shell.run(f"echo $$ > {tmp_path}/pid; exec sleep 1000", Deadline(0.5))
    with agent.connected(path, Deadline(30)):
        number = int((tmp_path / "pid").read_text())
        deadline = Deadline(10)
        while Path(f"/proc/{number}").exists() and not deadline.passed:
            time.sleep(0.02)
        assert not Path(f"/proc/{number}").exists()


def test_commands_of_a_dead_agent_end_without_an_answer(port: Port, path: Path) -> None:
    def die(content: bytes) -> None:
        port.agent.kill()
        port.agent.communicate()
        port.begin()

    with agent.connected(path, Deadline(30)) as shell:
        answer = shell.run("echo begun; sleep 1000", Deadline(1000), on_output=die)
        assert (answer.code, answer.lost, answer.out) == (None, True, b"begun\n")
    with agent.connected(path, Deadline(30)) as shell:
        assert shell.run("echo here", Deadline(30)).text == "here\n"


def test_a_truncated_frame_does_not_disturb_the_next_connection(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.sendall(agent._frame("r", 1, b"x" * 5000)[:-100])
        assert select.select([rude], [], [], 30)[0], "what the agent says when it begins is left unread"
    with agent.connected(path, Deadline(30)) as shell:
        assert shell.run("echo here", Deadline(30)).text == "here\n"


def test_noise_from_a_guest_is_skipped_and_limited() -> None:
    here, there = socket.socketpair()
    shell = AgentShell(here)

    def answer() -> None:
        head = there.recv(1 << 16)
        there.sendall(b"\x7fKM1" * 100 + secrets.token_bytes(5000) + head[:16] + b"wrong token 1234")
        there.sendall(head)

    threading.Thread(target=answer, daemon=True).start()
    assert shell.greet(Deadline(30))
    there.close()
    assert shell.run("true", Deadline(30)).lost
    shell.close()


def test_a_missing_agent_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(GuestUnreachable, match="cannot connect to the guest's agent"),
        agent.connected(tmp_path / "none", Deadline(1)),
    ):
        pass
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "deaf"))
        server.listen()
        with (
            pytest.raises(GuestUnreachable, match="no answer from the guest's agent"),
            agent.connected(tmp_path / "deaf", Deadline(0.5)),
        ):
            pass
