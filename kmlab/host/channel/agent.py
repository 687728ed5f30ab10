"""Run commands in a guest over a virtio-serial port, which needs no network and no key exchange.

The other end is guests/agent.c. Both send frames: magic, kind, the command's number, length (four little-endian 32-bit
words), and that many bytes. To the guest: h(ello), r(un a line), i(nput), f (end of the input), w(ake), q (write a mark
to the kernel's log and read files), k (read the kernel's log). From it: h, o(utput), e(rrors), x (the exit code).
The agent reads files and the log itself, so that replaced programs in the guest cannot falsify them.

Several commands may run at once; all end with the connection. A new agent sends h with number 0: commands that were
sent to an earlier, dead agent get no answer.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import OUTPUT_CAP, Answer, Shell

_MAGIC = 0x314D4B7F
_FRAME_HEADER = struct.Struct("<IIII")
_CHUNK = 128 << 10
"""The largest frame, in bytes: the limit of the agent, and of Linux for one argument of a program (execve(2))."""
_GREETING_SECONDS = 0.5
"""Seconds to wait for the answer to the first greeting. Each further wait is twice as long."""
_TICK = 0.05


class AgentShell(Shell):
    """An open channel to the agent. Use `connected` to make one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[tuple[str, bytes]]] = {}
        self._lost = threading.Event()
        self._greeted = False
        """Whether an agent has answered the greeting."""
        self._reader = threading.Thread(target=self._read, daemon=True, name="agent")

    def greet(self, deadline: Deadline, padding: bytes = b"") -> bool:
        """Return whether the guest's agent answers. Earlier frames are ignored from here on."""
        token = secrets.token_bytes(16)
        self._reader.start()
        number, answers = self._new()
        if self._send_raw(padding + _frame("h", number, token)):
            with contextlib.suppress(queue.Empty):
                while answers.get(timeout=max(deadline.left, 0.01)) != ("h", token):
                    pass
                return True
        return False

    def run(
        self,
        command: str,
        deadline: Deadline,
        *,
        data: bytes = b"",
        on_output: Callable[[bytes], None] | None = None,
        abandon: threading.Event | None = None,
    ) -> Answer:
        line = command.encode("utf-8", "surrogateescape")
        if len(line) >= _CHUNK:
            return Answer(127, b"", b"the command is too long\n")
        number, answers = self._new()
        feeder = threading.Thread(target=self._feed, args=(number, data), daemon=True) if len(data) > _CHUNK else None
        start = _frame("r", number, line)
        try:
            if feeder:
                self._send_raw(start)
                feeder.start()
            else:
                self._send_raw(start + (_frame("i", number, data) if data else b"") + _frame("f", number))
            return self._answer(number, answers, deadline, on_output, abandon)
        finally:
            self._answers.pop(number, None)

    def wake(self, now: float, noise: bytes, deadline: Deadline) -> Answer:
        return self._ask("w", struct.pack("<qq", int(now), int(now % 1 * 1e9)) + noise, deadline, None)

    def read_files(
        self, patterns: Sequence[str], deadline: Deadline, *, mark: str = "", abandon: threading.Event | None = None
    ) -> Answer:
        words = "".join(f"{word}\0" for word in (mark, *patterns))
        return self._ask("q", words.encode("utf-8", "surrogateescape"), deadline, abandon)

    def kernel_log(self, deadline: Deadline) -> Answer:
        return self._ask("k", b"", deadline, None)

    @property
    def alive(self) -> bool:
        return not self._lost.is_set()

    def close(self) -> None:
        self._lost.set()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()

    def _answer(
        self,
        number: int,
        answers: queue.SimpleQueue[tuple[str, bytes]],
        deadline: Deadline,
        on_output: Callable[[bytes], None] | None,
        abandon: threading.Event | None,
    ) -> Answer:
        streams = {"o": bytearray(), "e": bytearray()}
        while True:
            try:
                kind, content = answers.get(timeout=max(min(deadline.left, _TICK), 0.001))
            except queue.Empty:
                if deadline.passed or not self.alive or (abandon is not None and abandon.is_set()):
                    return Answer(None, bytes(streams["o"]), bytes(streams["e"]), lost=not self.alive)
                continue
            if kind == "x":
                (code,) = struct.unpack("<i", content.ljust(4, b"\0")[:4])
                return Answer(code, bytes(streams["o"]), bytes(streams["e"]))
            if kind in streams:
                if on_output:
                    on_output(content)
                if len(streams[kind]) < OUTPUT_CAP:
                    streams[kind] += content

    def _ask(self, kind: str, content: bytes, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        """Send a request that the agent answers itself, without starting a program."""
        number, answers = self._new()
        try:
            self._send_raw(_frame(kind, number, content))
            return self._answer(number, answers, deadline, None, abandon)
        finally:
            self._answers.pop(number, None)

    def _new(self) -> tuple[int, queue.SimpleQueue[tuple[str, bytes]]]:
        number = next(self._numbers)
        answers = self._answers[number] = queue.SimpleQueue()
        return number, answers

    def _feed(self, number: int, data: bytes) -> None:
        for begin in range(0, len(data), _CHUNK):
            # The command has ended or was abandoned: stop sending input.
            if number not in self._answers or not self._send_raw(_frame("i", number, data[begin : begin + _CHUNK])):
                return
        self._send_raw(_frame("f", number))

    def _send_raw(self, content: bytes) -> bool:
        with self._sending:
            try:
                self._channel.sendall(content)
            except OSError:
                self._lost.set()
                return False
        return True

    def _read(self) -> None:
        pending = bytearray()
        try:
            with contextlib.suppress(OSError):
                while chunk := self._channel.recv(1 << 18):
                    pending += chunk
                    self._dispatch(pending)
        finally:
            # After any error, even MemoryError, no command may wait for an answer.
            self._lost.set()

    def _dispatch(self, pending: bytearray) -> None:
        """Pass complete frames to their commands. Skip other bytes, for example from an earlier connection."""
        while len(pending) >= _FRAME_HEADER.size:
            magic, kind, number, length = _FRAME_HEADER.unpack_from(pending)
            if magic != _MAGIC or length > _CHUNK or kind > 127:
                following = pending.find(_MAGIC.to_bytes(4, "little"), 1)
                del pending[: following if following > 0 else len(pending) - 3]
                continue
            if len(pending) < _FRAME_HEADER.size + length:
                return
            content = bytes(pending[_FRAME_HEADER.size : _FRAME_HEADER.size + length])
            del pending[: _FRAME_HEADER.size + length]
            if chr(kind) == "h" and number == 0 and self._greeted:
                self._lost.set()
            self._greeted = self._greeted or (chr(kind) == "h" and number > 0)
            if answers := self._answers.get(number):
                answers.put((chr(kind), content))


def _frame(kind: str, number: int, content: bytes = b"") -> bytes:
    return _FRAME_HEADER.pack(_MAGIC, ord(kind), number, len(content)) + content


@contextlib.contextmanager
def connected(path: Path, deadline: Deadline) -> Iterator[Shell]:
    """Connect to the socket of the guest's port. Raise GuestUnreachable if the agent does not answer."""
    patience, padding = _GREETING_SECONDS, b""
    while True:
        shell = AgentShell(_reach(path, deadline))
        with contextlib.closing(shell):
            if shell.greet(deadline.within(patience), padding):
                yield shell
                return
        if deadline.passed:
            raise GuestUnreachable(f"no answer from the guest's agent ({path})")
        # Each new connection notifies the guest. The padding completes a frame that the agent may wait for.
        patience, padding = 2 * patience, bytes(_CHUNK)


def _reach(path: Path, deadline: Deadline) -> socket.socket:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.settimeout(max(deadline.left, 0.1))
            channel.connect(str(path))
            channel.settimeout(None)
            return channel
        except OSError as error:
            channel.close()
            if deadline.passed or not isinstance(error, ConnectionRefusedError | BlockingIOError):
                raise GuestUnreachable(f"cannot connect to the guest's agent ({path}): {error.strerror}") from None
        time.sleep(0.02)
