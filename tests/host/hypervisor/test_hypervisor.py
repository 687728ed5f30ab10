"""Test the errors of a QEMU that has no user-mode network, as libvirt and QEMU report them."""

from __future__ import annotations

import json

import pytest

from kmlab.common.errors import HypervisorError
from kmlab.common.events import Deadline
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.host.process.command import Conversation


class Worker(Conversation):
    """A libvirt worker that gives fixed answers."""

    def __init__(self, *answers: dict[str, object]) -> None:
        self.answers = list(answers)

    def ask(self, line: str, deadline: Deadline) -> str:
        return json.dumps(self.answers.pop(0))


@pytest.mark.parametrize(
    "answer",
    [
        "unknown command: 'hostfwd_add'\r\n",
        "unrecognized netdev id 'hostnet0'\r\n",
        "Error: Device 'hostnet0' not found\r\n",
    ],
)
def test_a_network_that_forwards_no_port_is_a_clear_error(answer: str) -> None:
    with pytest.raises(HypervisorError, match=r"not QEMU's own \(slirp\), so no port can be forwarded") as error:
        Hypervisor(Worker({"ok": answer})).forward("kmlab", "net0", 22)
    assert error.value.hint is not None and "slirp-helper" in error.value.hint and "RHEL" in error.value.hint


@pytest.mark.parametrize(
    "message",
    [
        "QEMU unexpectedly closed the monitor: -netdev user: network backend 'user' is not compiled into this binary",
        "Parameter 'type' does not accept value 'user'",
        "'user' is not a valid netdev backend type",
        "internal error: Could not start 'passt': exited with 1",
    ],
)
def test_a_qemu_without_slirp_does_not_start_a_guest_and_the_hint_says_why(message: str) -> None:
    with pytest.raises(HypervisorError) as error:
        Hypervisor(Worker({"error": message})).start("<domain/>")
    assert message in error.value.message
    assert error.value.hint is not None and "user-mode networking (slirp)" in error.value.hint


def test_other_errors_do_not_speak_of_the_network() -> None:
    with pytest.raises(HypervisorError) as error:
        Hypervisor(Worker({"error": "cannot allocate memory"})).start("<domain/>")
    assert error.value.hint is None
    with pytest.raises(HypervisorError, match="could not forward a port: could not set up") as refused:
        Hypervisor(Worker({"ok": "could not set up host forwarding rule"})).forward("kmlab", "net0", 22)
    assert refused.value.hint is None


def test_the_forwarded_port_is_read_from_qemu_s_table() -> None:
    table = "Hub -1 (hostnet0):\n  TCP[HOST_FORWARD]  13       127.0.0.1 40123       10.0.2.15    22     0     0\n"
    assert Hypervisor(Worker({"ok": ""}, {"ok": table})).forward("kmlab", "net0", 22) == 40123
