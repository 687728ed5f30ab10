"""A slow guest's sshd: a handshake that has begun is not given up, and a port without a server is noticed in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import connected, ensure_identity


class Door(paramiko.ServerInterface):
    """A server that lets everybody in, slowly."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        time.sleep(self.pause)
        return int(paramiko.common.AUTH_SUCCESSFUL)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


@contextlib.contextmanager
def listening(host_key: Path | None, pause: float = 0.0) -> Iterator[tuple[int, list[int]]]:
    """A port, and how many connections came; without a host key it accepts them and never says anything."""
    count: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    count.append(1)
                    kept.append(peer)
                    if host_key is not None:
                        transport = paramiko.Transport(peer)
                        transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(host_key)))
                        transport.start_server(event=threading.Event(), server=Door(pause))
                        transports.append(transport)

        kept: list[socket.socket] = []
        transports: list[paramiko.Transport] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], count
        for transport in transports:
            transport.close()
        for peer in kept:
            peer.close()


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    ensure_identity(tmp_path / "id")
    return tmp_path / "id"


@pytest.fixture
def host_key(tmp_path: Path) -> Path:
    ensure_identity(tmp_path / "host")
    return tmp_path / "host"


def test_a_handshake_that_takes_longer_than_the_attempt_is_not_given_up(identity: Path, host_key: Path) -> None:
    public = host_key.with_suffix(".pub").read_text(encoding="utf-8")
    with listening(host_key, pause=1.5) as (port, count):
        began = time.monotonic()
        with connected(port, public, identity, Deadline(0.5)):
            assert time.monotonic() - began >= 1.5
        assert len(count) == 1


def test_a_port_that_accepts_and_says_nothing_is_given_up_at_the_deadline(identity: Path) -> None:
    with listening(None) as (port, _), pytest.raises(GuestUnreachable, match="no answer on ssh"):
        began = time.monotonic()
        try:
            with connected(port, "ssh-ed25519 AAAA", identity, Deadline(0.5)):
                pass
        finally:
            assert time.monotonic() - began < 30


def test_a_server_that_hangs_up_is_tried_again_until_the_deadline(identity: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        count: list[int] = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    count.append(1)

        threading.Thread(target=hang_up, daemon=True).start()
        with (
            pytest.raises(GuestUnreachable),
            connected(server.getsockname()[1], "ssh-ed25519 AAAA", identity, Deadline(1)),
        ):
            pass
        assert len(count) > 1
