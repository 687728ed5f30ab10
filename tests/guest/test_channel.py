"""The channel to a guest's agent, where it is all there is, and where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.conftest import REPOSITORY, Lab

HELLO = str(REPOSITORY / "examples/hello")
CUT_OFF = """
for link in /sys/class/net/e*; do ip link set dev ${link##*/} down; done
test -z "$SSH_CONNECTION" && ! ip route show default | grep .
"""


@pytest.fixture
def spoilt(repository: Lab) -> Iterator[Lab]:
    """The lab's guest, which is restored afterwards."""
    yield repository
    repository("reset")


def test_a_module_that_takes_the_network_down_gets_its_verdict(spoilt: Lab) -> None:
    result = spoilt("run", HELLO, "--json", "--exercise", CUT_OFF).result
    assert (result["outcome"], result["ok"]) == ("pass", True)
    assert [step["outcome"] for step in result["steps"] if step["name"] in ("exercise", "unload")] == ["ok", "ok"]
    # sshd cannot be reached any more; the guest still can.
    assert spoilt("run", HELLO, "--json").result["outcome"] == "pass"


def test_where_the_agent_is_silent_ssh_does_the_same(spoilt: Lab) -> None:
    spoilt("ssh", "debian", "systemctl kill --signal=STOP kmlab-agent")
    result = spoilt("run", HELLO, "--json", "--exercise", 'test -n "$SSH_CONNECTION"')
    assert result.result["outcome"] == "pass"
