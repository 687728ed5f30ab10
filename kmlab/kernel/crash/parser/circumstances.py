"""Who ran into a bug and where: task, process, CPU, and what the report says of the kernel's modules."""

from __future__ import annotations

import re

from kmlab.kernel.crash.patterns import Header, find_dump


class Circumstances:
    """Who ran into it, as far as the report's lines have told."""

    def __init__(self, header: Header) -> None:
        self.task, self.pid, self.cpu = header.task, header.pid, header.cpu
        self.unloaded: str | None = None
        """The module that was unloaded last."""
        self.listed = False
        """The report has the kernel's list of modules."""
        self.jumped = False
        """The fault was to fetch an instruction where there is none."""

    def go_on(self, header: Header) -> None:
        """Learn from a first line that is part of the same report."""
        self.pid, self.cpu = header.pid or self.pid, header.cpu if self.cpu is None else self.cpu

    def learn(self, text: str) -> None:
        """Learn from a line."""
        dumped = find_dump(text)
        if dumped:
            self.cpu = dumped.cpu if self.cpu is None else self.cpu
            self.pid = dumped.pid if self.pid is None else self.pid
            if self.task is None and dumped.pid == self.pid:
                self.task = dumped.task
        elif self.pid is None and (" pid" in text or " task " in text):
            named = _NAMED.search(text)
            if named:
                self.pid = int(named[2] or named[3] or named[6])
                self.task = named[1] or named[4] or named[5]
        if text.startswith(("#PF: supervisor instruction fetch", "kernel tried to execute NX-protected page")):
            self.jumped = True
        self.listed = self.listed or text.startswith("Modules linked in")
        if "last unloaded: " in text:
            unloaded = _UNLOADED.search(text)
            self.unloaded = unloaded[1] if unloaded else None

    def learn_holder(self, text: str) -> None:
        """Learn who holds a lock, from lockdep's words."""
        if self.pid is None and "/" in text:
            holder = _HOLDER.match(text)
            if holder:
                self.task, self.pid = holder[1], int(holder[2])


_NAMED = re.compile(
    r"by task (.{1,64}?)/(\d{1,9})(?!\S)|pid: (\d{1,9}), name: (.{1,64})$|comm \"(.{1,64}?)\", pid (\d{1,9})"
)
_HOLDER = re.compile(
    r"(?:\d{1,3} locks? held by )?(.{1,64}?)/(\d{1,9})(?: \[[^\]]{1,80}\])?(?: is (?:trying|freeing|leaving)| takes|:)"
)
_UNLOADED = re.compile(r"\[last unloaded: ([\w-]{1,64})")
