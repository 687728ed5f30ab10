"""Run commands in a guest over ssh. Only this file imports paramiko (https://docs.paramiko.org/).

A run uses one connection, because under emulation the key exchange takes longer than any command.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable, LabError
from kmlab.common.events import Deadline, silent
from kmlab.host.process import locks

if TYPE_CHECKING:
    import paramiko

_HANDSHAKE = 60.0
"""Seconds for the rest of the handshake once the server has answered. An emulated kernel with all checks needs ten."""
OUTPUT_CAP = 32 << 20
"""The largest output of one command that is kept, in bytes. The rest is read and dropped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command in the guest."""

    code: int | None
    """The exit code; None if the deadline passed or the connection was lost first."""
    out: bytes
    err: bytes
    lost: bool = False
    """The connection broke while it ran."""

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        return self.err.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        return self.code == 0


_RESEED = (
    'local $/; my $noise = <STDIN>; open(my $pool, "+<", "/dev/urandom") or exit 1; '
    'ioctl($pool, 0x40085203, pack("ii", 8 * length $noise, length $noise) . $noise) or exit 1; '
    "ioctl($pool, 0x5207, 0) or exit 1"
)
"""RNDADDENTROPY, then RNDRESEEDCRNG, with their numbers on all supported architectures (linux/random.h)."""


class Shell:
    """An open connection as root. Use `connected` to make one."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    def run(
        self,
        command: str,
        deadline: Deadline,
        *,
        data: bytes = b"",
        on_output: Callable[[bytes], None] | None = None,
        abandon: threading.Event | None = None,
    ) -> Answer:
        """Run `command` with `data` as its input. Failures of the guest are part of the `Answer`, not exceptions.

        Setting `abandon` ends the wait at once.
        """
        import paramiko

        out, err = bytearray(), bytearray()
        try:
            channel = self._transport.open_session(timeout=max(deadline.left, 0.1))
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError):
            return Answer(None, b"", b"", lost=not self._transport.is_active())
        with contextlib.closing(channel):
            feeder = threading.Thread(target=_feed, args=(channel, data), daemon=True)
            feeder.start()
            while True:
                moved = _drain(channel, out, err, on_output)
                if channel.exit_status_ready() and not moved and (channel.eof_received or channel.closed):
                    _drain(channel, out, err, on_output)
                    code = channel.recv_exit_status()
                    lost = code == -1 and not self._transport.is_active()
                    return Answer(None if code == -1 else code, bytes(out), bytes(err), lost)
                if deadline.passed or (abandon is not None and abandon.is_set()):
                    return Answer(None, bytes(out), bytes(err))
                if not self._transport.is_active():
                    return Answer(None, bytes(out), bytes(err), lost=True)
                if not moved:
                    time.sleep(0.01)

    def wake(self, now: float, noise: bytes, deadline: Deadline) -> Answer:
        """Set the guest's clock (seconds since the epoch), and reseed its kernel's random numbers with `noise` at once.

        Uses perl, which Debian and Ubuntu always have, because reseeding needs an ioctl (random(4)).
        """
        return self.run(f"perl -e '{_RESEED}' && date --utc --set=@{now:.3f} > /dev/null", deadline, data=noise)

    def read_files(
        self, patterns: Sequence[str], deadline: Deadline, *, mark: str = "", abandon: threading.Event | None = None
    ) -> Answer:
        """Read the guest's files that match the shell patterns, each after a header like that of tail(1).

        First write `mark`, if given, to the kernel's log as a separate line.
        """
        marked = f"printf '<5>%s\\n' {shlex.quote(mark)} > /dev/kmsg; " if mark else ""
        return self.run(f"{marked}tail -n +1 {' '.join(patterns)} 2> /dev/null; :", deadline, abandon=abandon)

    def kernel_log(self, deadline: Deadline) -> Answer:
        """Read the kernel's ring buffer as records of /dev/kmsg, at least those since the connection was opened.

        The exit code is not 0 if records were overwritten before they were read.
        """
        # dd ends after the last record with EAGAIN, which is not an error here.
        return self.run("dd if=/dev/kmsg iflag=nonblock bs=16k status=none 2> /dev/null; :", deadline)

    @property
    def alive(self) -> bool:
        return self._transport.is_active()


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):
        if data:
            channel.sendall(data)
        channel.shutdown_write()


def _drain(
    channel: paramiko.Channel, out: bytearray, err: bytearray, on_output: Callable[[bytes], None] | None
) -> bool:
    moved = False
    while channel.recv_ready():
        chunk = channel.recv(65536)
        if not chunk:
            break
        moved = True
        if on_output:
            on_output(chunk)
        if len(out) < OUTPUT_CAP:
            out += chunk
    while channel.recv_stderr_ready():
        chunk = channel.recv_stderr(65536)
        if not chunk:
            break
        moved = True
        if on_output:
            on_output(chunk)
        if len(err) < OUTPUT_CAP:
            err += chunk
    return moved


@contextlib.contextmanager
def connected(port: int, host_key: str, identity: Path, deadline: Deadline) -> Iterator[Shell]:
    """Connect as root to 127.0.0.1:`port` and check that the guest has exactly `host_key` ("ssh-ed25519 AAAA…").

    Retry until the deadline while the guest boots; then raise GuestUnreachable with the last reason.
    """
    transport = _connect(port, host_key, identity, deadline)
    try:
        yield Shell(transport)
    finally:
        transport.close()


def _connect(port: int, host_key: str, identity: Path, deadline: Deadline) -> paramiko.Transport:
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    expected = host_key.split()
    try:
        key = paramiko.Ed25519Key.from_private_key_file(str(identity))
    except (OSError, paramiko.SSHException) as error:
        raise LabError(f"{identity}: cannot read the lab's ssh key: {error}", "kmlab destroy, then kmlab up") from None
    reason = "no server listens"
    while True:
        transport = None
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=max(min(deadline.left, 10), 0.1))
            _wait_for_banner(sock, deadline)
            patience = max(deadline.left, _HANDSHAKE)
            transport = paramiko.Transport(sock)
            transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = patience
            transport.get_security_options().key_types = ("ssh-ed25519",)
            transport.start_client(timeout=patience)
            server_key = transport.get_remote_server_key()
            if [server_key.get_name(), server_key.get_base64()] != expected[:2]:
                transport.close()
                raise LabError(
                    f"127.0.0.1:{port} answers with another ssh host key than this guest's",
                    "another server listens there: kmlab reset",
                )
            transport.auth_publickey("root", key)
            transport.set_keepalive(0)
            return transport
        except paramiko.AuthenticationException as error:
            if transport is not None:
                transport.close()
            raise LabError(f"127.0.0.1:{port}: the guest refuses the lab's ssh key: {error}", "kmlab reset") from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            reason = str(error) or type(error).__name__
            if transport is not None:
                transport.close()
        if deadline.passed:
            raise GuestUnreachable(f"no answer on ssh (127.0.0.1:{port}): {reason}")
        time.sleep(min(0.05, deadline.left))


def _wait_for_banner(sock: socket.socket, deadline: Deadline) -> None:
    """Wait until the server has sent the first bytes. QEMU accepts a connection even if no server runs in the guest."""
    sock.settimeout(max(deadline.left, 0.1))
    if not sock.recv(1, socket.MSG_PEEK):
        raise ConnectionResetError("the server closed the connection")


def ensure_identity(private: Path) -> str:
    """Return the public half of the user's key for guests. Create the key pair if there is none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    public = private.with_suffix(".pub")
    if private.exists() and public.exists():
        return public.read_text(encoding="utf-8").strip()
    paths.make_folder(private.parent, 0o700)
    with locks.held(private.with_suffix(".lock"), "the ssh key of guests", silent, Deadline(60)):
        if private.exists() and public.exists():
            return public.read_text(encoding="utf-8").strip()
        key = ed25519.Ed25519PrivateKey.generate()
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        paths.write_text(private, text.decode(), 0o600)
        paths.write_text(public, f"{line.decode()} kmlab\n")
        return public.read_text(encoding="utf-8").strip()


def client_options(known_hosts: Path, identity: Path) -> dict[str, str]:
    """Return the options with which OpenSSH opens a guest, and only that guest (ssh_config(5))."""
    return {
        "IdentitiesOnly": "yes",  # other keys of ssh-agent must not use up the attempts
        "IdentityFile": str(identity),
        "UserKnownHostsFile": str(known_hosts),
        "GlobalKnownHostsFile": os.devnull,
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }


def client_argv(port: int, known_hosts: Path, identity: Path, command: list[str]) -> list[str]:
    """Return the OpenSSH command line that opens the guest in the user's terminal."""
    argv = ["ssh", "-F", os.devnull, "-p", str(port)]
    for name, value in client_options(known_hosts, identity).items():
        argv += ["-o", f"{name}={value}"]
    return [*argv, "root@127.0.0.1", *(["--", *command] if command else [])]


def known_hosts_line(port: int, host_key: str) -> str:
    return f"[127.0.0.1]:{port} {' '.join(host_key.split()[:2])}\n"
