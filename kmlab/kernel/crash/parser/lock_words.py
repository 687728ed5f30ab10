"""What lockdep says in its own words: which locks are held, where each was taken (kernel/locking/lockdep.c)."""

from __future__ import annotations

import re

from kmlab.kernel.crash.stack_trace import Frame, find_symbol

_MAX_LOCKS = 8


class LockWords:
    """What a report of lockdep's says of locks."""

    def __init__(self) -> None:
        self._locks: set[str] = set()
        self.earlier = False
        """The place to mend is where the lock was taken first."""
        self.naming = False
        """The next frame is the place that this line speaks of."""

    def learn(self, text: str) -> Frame | None:
        """Learn from a line; return the function that it says took a lock."""
        taken = None
        if ", at: " in text:
            if len(self._locks) < _MAX_LOCKS:
                self._locks.update(_LOCK.findall(text))
            taken = find_symbol(text.partition(", at: ")[2])
        self.naming = text.endswith(" at:") and "lock" in text and not text.startswith("{")
        if text.startswith("inconsistent {") and _USAGE.search(text):
            self.earlier = True
        return taken._replace(exact=False) if taken else None

    @property
    def are_kmemleak_s(self) -> bool:
        """They are the locks of kmemleak's own messages, which are printed while it holds them."""
        return {"kmemleak_lock", "console_owner"} <= self._locks


_LOCK = re.compile(r" \(([\w&.>*#/-]{1,80})\)\{")
_USAGE = re.compile(r"\{\w{1,20}-ON-\w\} -> \{IN-")
