"""Test MokManager's screens with the recorded output of a real one (shim 16.1, OVMF 2022.11)."""

from __future__ import annotations

import os
import pty
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Stage, silent
from kmlab.host.channel import serialport
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.provision.bases import mok_enrolment
from kmlab.virt.mokmanager import DOWN, ENTER, MokManager, Refused
from tests.places import TEST_DATA

RECORDED = (TEST_DATA / "mokmanager" / "enrol.bytes").read_bytes()
TYPED = [ENTER, DOWN, ENTER, DOWN, ENTER, DOWN, ENTER, b"secret", ENTER, ENTER]


def typed(manager: MokManager, content: bytes, size: int) -> list[bytes]:
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    return [key for chunk in (*chunks, *[b""] * len(TYPED)) for key in manager.feed(chunk)]


@pytest.mark.parametrize("size", [1, 7, 80, 4096])
def test_every_screen_is_answered_once_in_any_chunks(size: int) -> None:
    manager = MokManager("secret")
    assert typed(manager, RECORDED, size) == TYPED
    assert manager.done
    assert manager.feed(RECORDED) == (), "and nothing more is typed into what comes after"


def test_nothing_is_typed_before_a_screen_appears() -> None:
    manager = MokManager("secret")
    begin = RECORDED.index(b"Press any key")
    assert typed(manager, RECORDED[:begin], 100) == []
    assert manager.awaits == "MokManager"
    assert not manager.done


def test_the_password_is_typed_only_at_its_prompt() -> None:
    manager = MokManager("secret")
    at = RECORDED.index(b"Password:")
    assert b"secret" not in typed(manager, RECORDED[:at], 50)
    assert manager.awaits == "the password"
    assert b"secret" in typed(manager, RECORDED[at:], 50)


@pytest.mark.parametrize("words", [b"Password doesn't match", b"Failed to enroll keys", b"Password limit reached"])
def test_a_refusal_of_mokmanager_is_an_error_with_its_message(words: bytes) -> None:
    manager = MokManager("secret")
    typed(manager, RECORDED[: RECORDED.index(b"Password:")], 64)
    with pytest.raises(Refused, match=words[:15].decode()):
        manager.feed(b"\x1b[10;5H" + words)


@settings(max_examples=50)
@given(st.binary(max_size=3000).filter(lambda noise: b"Press any key" not in noise))
def test_a_console_that_is_not_mokmanager_s_gets_no_key(noise: bytes) -> None:
    manager = MokManager("secret")
    for _ in range(50):
        assert manager.feed(noise) == ()


# --- over a port ---------------------------------------------------------------------------------------------------


class OnePort(Hypervisor):
    """A running domain, of which only the pty of its serial port is known."""

    def __init__(self, device: str) -> None:
        self.device = device

    def xml(self, name: str) -> str:
        return f"<domain><devices><serial type='pty'><source path='{self.device}'/></serial></devices></domain>"


@contextmanager
def played(*screens: bytes) -> Iterator[tuple[OnePort, bytearray]]:
    """A pty on whose other side each screen is shown once the one before it was answered; and what was typed."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    heard = bytearray()

    def play() -> None:
        for screen in screens:
            os.write(master, screen)
            # A screen wants two keys at most, and an Enter is always the last.
            while not heard.endswith(ENTER) or screen == screens[-1]:
                try:
                    heard.extend(os.read(master, 100))
                except OSError:
                    return
                if heard.endswith(ENTER):
                    break
            heard.extend(b"|")

    player = threading.Thread(target=play, daemon=True)
    player.start()
    try:
        yield OnePort(os.ttyname(slave)), heard
    finally:
        # What was typed is still read, and then the end of it.
        os.close(slave)
        player.join(10)
        os.close(master)


def test_the_screens_are_answered_over_a_serial_port() -> None:
    ends = [RECORDED.index(words) + len(words) for words in (b"Press any key to perform MOK management", b"Enroll MOK")]
    ends += [RECORDED.index(words) + len(words) for words in (b"View key 0", b"Enroll the key(s)?", b"Password:")]
    parts = [RECORDED[a:b] for a, b in zip([0, *ends], [*ends, len(RECORDED)], strict=True)]
    with played(*parts) as (hv, heard):
        mok_enrolment.answer_screens(hv, "kmlab", "secret", Stage(silent, "guest", "enrolling"), Deadline(30))
    assert bytes(heard).split(b"|")[:-1] == [
        *(ENTER, DOWN + ENTER, DOWN + ENTER, DOWN + ENTER, b"secret" + ENTER, ENTER)
    ]


def test_a_guest_that_never_shows_mokmanager_is_an_error_that_names_the_screen() -> None:
    with played(b"login: ") as (hv, heard), pytest.raises(LabError, match="while waiting for MokManager"):
        mok_enrolment.answer_screens(hv, "kmlab", "secret", Stage(silent, "guest", "enrolling"), Deadline(0.3))
    assert b"secret" not in heard


def test_a_missing_port_is_reported() -> None:
    refused = pytest.raises(LabError, match="/dev/pts/absent: cannot open the guest's serial port")
    with refused, serialport.opened("/dev/pts/absent"):
        pass
