"""What lockdep says in its own words: which locks are held, where each was taken (kernel/locking/lockdep.c)."""

from __future__ import annotations

import re

from kmlab.kernel.crash.stack_trace import Frame, find_symbol

_MAX_LOCKS = 16


class LockWords:
    """What a report of lockdep's says of locks."""

    def __init__(self) -> None:
        self._locks: list[str] = []
        """Those that the report names, the two that it is about first."""
        self.earlier = False
        """The place to mend is where the lock was taken first."""
        self.naming = False
        """The next frame is the place that this line speaks of."""

    def learn(self, text: str) -> Frame | None:
        """Learn from a line; return the function that it says took a lock."""
        taken = None
        if ")" in text and len(self._locks) < _MAX_LOCKS:
            self._locks += _LOCK.findall(text)
        if ", at: " in text:
            taken = find_symbol(text.partition(", at: ")[2])
        self.naming = text.endswith(" at:") and "lock" in text and not text.startswith("{")
        if text.startswith("inconsistent {") and _USAGE.search(text):
            self.earlier = True
        return taken._replace(exact=False) if taken else None

    @property
    def are_kmemleak_s(self) -> bool:
        """They are the locks of kmemleak's own messages, which are printed while it holds them."""
        return "kmemleak_lock" in self._locks and self._locks[1:2] != [] and _OF_MESSAGES.issuperset(self._locks[:2])


_OF_MESSAGES = frozenset(
    {
        *("kmemleak_lock", "console_owner", "console_lock", "console_srcu", "console_sem", "console_mutex"),
        *("logbuf_lock", "&port_lock_key", "&port->lock", "port_lock", "&up->port.lock", "&(&port->lock)->rlock"),
    }
)
"""Locks of kmemleak, and of those who bring a message to the console (mm/kmemleak.c, kernel/printk, serial_core.h)."""
_LOCK = re.compile(r" \(([\w&.>*#/-]{1,80})\)\{")
_USAGE = re.compile(r"\{\w{1,20}-ON-\w\} -> \{IN-")
