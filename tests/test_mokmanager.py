"""Going through MokManager's screens, on what a real one wrote to its serial console (shim 16.1, OVMF 2022.11)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.virt.mokmanager import DOWN, ENTER, MokManager, Refused

RECORDED = (Path(__file__).parent / "data" / "mokmanager" / "enrol.bytes").read_bytes()
TYPED = [ENTER, DOWN, ENTER, DOWN, ENTER, DOWN, ENTER, b"secret", ENTER, ENTER]


def typed(manager: MokManager, content: bytes, size: int) -> list[bytes]:
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    return [key for chunk in (*chunks, *[b""] * len(TYPED)) for key in manager.feed(chunk)]


@pytest.mark.parametrize("size", [1, 7, 80, 4096])
def test_every_screen_is_answered_once_however_its_bytes_come(size: int) -> None:
    manager = MokManager("secret")
    assert typed(manager, RECORDED, size) == TYPED
    assert manager.done
    assert manager.feed(RECORDED) == (), "and nothing more is typed into what comes after"


def test_nothing_is_typed_before_a_screen_is_there() -> None:
    manager = MokManager("secret")
    begin = RECORDED.index(b"Press any key")
    assert typed(manager, RECORDED[:begin], 100) == []
    assert manager.awaits == "MokManager"
    assert not manager.done


def test_the_password_is_typed_only_where_it_is_asked_for() -> None:
    manager = MokManager("secret")
    at = RECORDED.index(b"Password:")
    assert b"secret" not in typed(manager, RECORDED[:at], 50)
    assert manager.awaits == "the password"
    assert b"secret" in typed(manager, RECORDED[at:], 50)


@pytest.mark.parametrize("words", [b"Password doesn't match", b"Failed to enroll keys", b"Password limit reached"])
def test_what_mokmanager_refuses_is_an_error_in_its_own_words(words: bytes) -> None:
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
