"""What a guest can connect to: with the default, neither the host nor anything else; ssh into it works."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.guest.conftest import REPOSITORY, Lab

GUEST = "name: t\nguests:\n  debian: {{image: debian-12, cpus: 2, memory: 1G, network: {}}}\n"
REACH = """
exec 3<> /dev/tcp/10.0.2.2/{port} && timeout 5 cat <&3
"""
UDP = 'perl -MIO::Socket::INET -e \'IO::Socket::INET->new(Proto=>"udp", PeerAddr=>"{address}:{port}")->send("udp")\''


class Listener:
    """A service on the host's loopback that says a secret to whoever connects, over TCP and UDP."""

    def __init__(self) -> None:
        self.met: list[str] = []
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        for serve in (self._answer, self._hear):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                self.met.append("tcp")
                with connection:
                    connection.sendall(b"the host's secret\n")

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while self._udp.recv(100):
                self.met.append("udp")

    def close(self) -> None:
        for each in (self._tcp, self._udp):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listener on the host's loopback."""
    made = Listener()
    yield made
    made.close()


def attempt(lab: Lab, port: int) -> str:
    """Return what a guest gets that tries every way to a port of the host."""
    tcp = f"timeout 10 bash -c '{REACH.format(port=port).strip()}' 2>&1"
    udp = "; ".join(UDP.format(address=address, port=port) for address in ("10.0.2.2", "127.0.0.1"))
    return lab("ssh", "debian", "--", f"ip route | head -1; {tcp}; {udp}; echo tried", timeout=120).out


def test_a_guest_reaches_no_service_of_the_host_and_ssh_reaches_the_guest(lab: Lab, listener: Listener) -> None:
    lab("up")
    said = attempt(lab, listener.port)
    assert "default via 10.0.2.2" in said, "the guest has a route, and nothing answers there"
    assert "tried" in said
    assert "secret" not in said
    assert listener.met == []
    outside = "timeout 20 bash -c 'exec 3<> /dev/tcp/1.1.1.1/53' && echo out; getent hosts debian.org && echo out; :"
    assert "out" not in lab("ssh", "debian", "--", outside, timeout=120).out.split()
    status = lab("status").out
    assert "ssh on 127.0.0.1:" in status and "network: isolated" in status
    assert lab("run", str(REPOSITORY / "examples/hello"), "--json").result["outcome"] == "pass"


def test_another_network_takes_a_restore_and_no_other_checkpoint(lab: Lab, listener: Listener) -> None:
    before = lab("up", "--json").json["guests"][0]
    lab.write(GUEST.format("host"))
    after = lab("up", "--json").json["guests"][0]
    assert (before["network"], after["network"]) == ("isolated", "host")
    assert before["checkpoint"] == after["checkpoint"]
    assert "the host's secret" in attempt(lab, listener.port)
    assert "tcp" in listener.met


def test_a_guest_without_a_network_runs_modules_and_has_no_ssh(lab: Lab) -> None:
    lab.write(GUEST.format("none"))
    record = lab("up", "--json").json["guests"][0]
    assert (record["network"], record["port"]) == ("none", None)
    result = lab("run", str(REPOSITORY / "examples/hello"), "--json", "--exercise", "cat /sys/class/net/en*/carrier")
    assert result.result["outcome"] == "pass"
    refused = lab("ssh", "debian", "--", "true", code=3)
    assert "has no network" in refused.err and "kmlab console" in refused.err
    assert "no ssh" in lab("status").out
