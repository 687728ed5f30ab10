"""Decide which keys to type into MokManager, from the bytes that it writes to a serial console.

Follows MokManager.c and lib/console.c of shim (https://github.com/rhboot/shim), versions 15 to 16. MokManager moves the
cursor between its texts, so this file searches for texts, not for lines.
"""

from __future__ import annotations

from typing import NamedTuple

DOWN, ENTER = b"\x1b[B", b"\r"

_COMPLAINTS = (b"Password doesn't match", b"Failed to enroll", b"Password limit reached", b"Failed to set variable")
_LONGEST = 1 << 16
"""The largest number of bytes kept while waiting for a screen."""


class Screen(NamedTuple):
    """One screen: the last text that it shows, and the keys to type."""

    shows: bytes
    keys: tuple[bytes, ...]
    what: str
    """The screen's name in progress messages."""


class Refused(Exception):
    """MokManager reported an error. The message is MokManager's text."""


class MokManager:
    """Enrol the key that mokutil(1) requested: `feed` takes the console's output and returns the keys to type."""

    def __init__(self, password: str) -> None:
        self._screens = [
            Screen(b"Press any key to perform MOK management", (ENTER,), "MokManager"),
            Screen(b"Enroll MOK", (DOWN, ENTER), "its menu"),
            Screen(b"View key 0", (DOWN, ENTER), "the keys to enrol"),
            Screen(b"Enroll the key(s)?", (DOWN, ENTER), "its question"),
            Screen(b"Password:", (password.encode(), ENTER), "the password"),
            Screen(b"Reboot", (ENTER,), "the reboot"),
        ]
        self._seen = bytearray()
        self._begun = False

    @property
    def done(self) -> bool:
        return not self._screens

    @property
    def awaits(self) -> str:
        """Return the name of the screen that it waits for."""
        return self._screens[0].what if self._screens else "nothing"

    def feed(self, output: bytes) -> tuple[bytes, ...]:
        """Return the keys to type now, in order; often none. Raise Refused if MokManager rejected the last ones."""
        self._seen += output
        for words in _COMPLAINTS if self._begun else ():
            if words in self._seen:
                raise Refused(words.decode())
        at = -1 if self.done else self._seen.find(self._screens[0].shows)
        if at < 0:
            del self._seen[:-_LONGEST]
            return ()
        # What follows belongs to the next screen.
        del self._seen[: at + len(self._screens[0].shows)]
        self._begun = True
        return self._screens.pop(0).keys
