"""What to type into MokManager, screen by screen, from the bytes that it writes to a serial console.

Follows MokManager.c and lib/console.c of shim (https://github.com/rhboot/shim), versions 15 to 16. It draws with
cursor movements between its texts, so texts are searched for and never lines.
"""

from __future__ import annotations

from typing import NamedTuple

DOWN, ENTER = b"\x1b[B", b"\r"

_COMPLAINTS = (b"Password doesn't match", b"Failed to enroll", b"Password limit reached", b"Failed to set variable")
_LONGEST = 1 << 16
"""Bytes kept of a screen that does not end."""


class Screen(NamedTuple):
    """One screen: what it shows once it is whole, and the keys for it."""

    shows: bytes
    keys: tuple[bytes, ...]
    what: str
    """For a person who waits."""


class Refused(Exception):
    """MokManager says that something is wrong; its own words."""


class MokManager:
    """Enrols the one key that mokutil(1) asked for. Feed it what the console says; type what it answers."""

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
        """What it waits for now."""
        return self._screens[0].what if self._screens else "nothing"

    def feed(self, said: bytes) -> tuple[bytes, ...]:
        """The keys to type now, one after the other; often none. Refused, if it did not like the last ones."""
        self._seen += said
        for words in _COMPLAINTS if self._begun else ():
            if words in self._seen:
                raise Refused(words.decode())
        at = -1 if self.done else self._seen.find(self._screens[0].shows)
        if at < 0:
            del self._seen[:-_LONGEST]
            return ()
        # What comes behind it belongs to the next screen.
        del self._seen[: at + len(self._screens[0].shows)]
        self._begun = True
        return self._screens.pop(0).keys
