"""A console that is read as it grows, whichever file it is by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.diagnosis.console import Follower


@pytest.fixture
def console(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def say(console: Path, text: str) -> None:
    with console.open("a") as file:
        file.write(text)


def texts(follower: Follower) -> list[str]:
    return [record.text for record in follower.read()]


def test_records_come_once_and_as_they_are_whole(console: Path) -> None:
    follower = Follower(console)
    assert texts(follower) == [], "there is no such file yet"
    say(console, "[    1.000000] one\n[    2.000000] tw")
    assert texts(follower) == ["one"]
    say(console, "o\nlogin: \n[    3.000000] three")
    assert texts(follower) == ["two"], "what no kernel said is left out"
    assert [record.text for record in follower.close()] == ["three"]


def test_at_the_end_only_what_comes_is_read(console: Path) -> None:
    say(console, "[    1.000000] one\n")
    follower = Follower(console, at_end=True)
    assert texts(follower) == []
    say(console, "[    2.000000] two\n")
    assert texts(follower) == ["two"]


@pytest.mark.parametrize("gone_for_a_while", [True, False])
def test_a_restored_guests_console_is_read_from_its_start(console: Path, gone_for_a_while: bool) -> None:
    say(console, "[    1.000000] old\n")
    follower = Follower(console, at_end=True)
    texts(follower)
    say(console, "[    2.000000] last\n[    3.000000] cut sh")
    console.unlink()
    if gone_for_a_while:
        assert texts(follower) == ["last", "cut sh"]
        say(console, "[    1.500000] new\n")
        assert texts(follower) == ["new"]
    else:
        say(console, "[    1.500000] new\n")
        assert texts(follower) == ["last", "cut sh", "new"]


def test_a_console_that_was_emptied_is_read_anew(console: Path) -> None:
    say(console, "[    1.000000] something that is long\n")
    follower = Follower(console)
    texts(follower)
    console.write_text("[    0.500000] new\n")
    assert texts(follower) == ["new"]
