"""What a report is about: its class, its title, and the place that it names itself."""

from __future__ import annotations

import re

from kmlab.kernel.crash.patterns import Header, Message, checked_by, find_message, steady, traits_of
from kmlab.kernel.crash.stack_trace import Frame

PLAIN = ("bug", "warning", "invalid-opcode", "stack-dump")
"""Classes that say nothing of what was wrong: the message of the check does."""
_ACCESSES = ("gpf", "page-fault", "oops")


class Subject:
    """What a report is about, as far as its lines have told."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.told: Message | None = None
        """What the check said that failed."""
        self.file, self.line = header.file, header.line
        self.class_ = self.title = ""
        self._traits: frozenset[str] = frozenset()
        self._set_class(header.shape.class_, header.title)

    def is_(self, trait: str) -> bool:
        """Whether this is true of reports of its class, or of those that begin with its first line."""
        return trait in self._traits

    @property
    def kind(self) -> str:
        return self.header.shape.kind

    @property
    def untold(self) -> bool:
        """It is the failure of some check, and what that said is not known."""
        return self.class_ in ("warning", "bug") and self.told is None

    @property
    def names_instruction(self) -> bool:
        """The report is about the very instruction, not a call: KFENCE finds an access by its page fault."""
        return self.class_ != "kfence" or not self.header.what.startswith(("invalid free", "memory corruption"))

    def words_of(self, symbol: Frame) -> Frame:
        """Return the function in the first line: where a sanitizer names the return address of its own call."""
        at_call = self.header.shape.class_ in ("kasan", "kmsan", "kcsan") or not self.names_instruction
        return symbol._replace(exact=symbol.exact and not at_call)

    def led_by(self, message: Message | None, said: str | None) -> Frame | None:
        """Learn from what was said before the first line; return the function that this names."""
        if message and self.class_ in (*PLAIN, message.class_):
            return self._take(message, said)
        if self.class_ == "warning":
            self._say(said or "")
        return None

    def refine(self, header: Header) -> None:
        """Learn from a second first line, such as `invalid opcode:` after `kernel BUG at`."""
        if self.class_ == "oops" and header.shape.kind == "oops":
            self._set_class(header.shape.class_, header.title)
        if self.class_ == header.shape.class_:
            self._place(header)

    def go_on(self, header: Header) -> None:
        """Learn from a first line that is part of the same report."""
        if header.symbol and "names" in header.shape.traits:
            self.header = header
            self._set_class(self.class_, self.title)
        self._place(header)

    def learn(self, text: str) -> None:
        """Learn from a line what was wrong."""
        if self.class_ == "rcu-usage" and self.file is None and (place := _SUSPICIOUS.match(text)):
            self.file, self.line = place[1], int(place[2])
        if text.startswith(("KASAN: null-ptr-deref", "Failing address: 0000000000000")) and self.class_ in _ACCESSES:
            self._is_null()
        elif self.class_ == "oops" and text.startswith("CR2: "):
            # The first line was lost; the address that was touched tells what it said.
            self._set_class("page-fault", "BUG: unable to handle page fault")
            if text.startswith("CR2: 0000000000000"):
                self._is_null()

    def learn_why(self, text: str, is_next: bool) -> Frame | None:
        """Learn what a check said, which kernels before 4.15 print behind the first line; return whom it names."""
        message = find_message(text)
        if message:
            return self._take(message)
        if self.title == "WARNING" and is_next:
            self._say(text)
        return None

    def checked(self, frame: Frame | None) -> tuple[str, str]:
        """Return class and title, by the check that `frame` is in where nothing else tells them."""
        known = (self.class_, self.title)
        if frame is None or frame.module is not None or self.class_ not in ("bug", "warning"):
            return known
        return checked_by(frame.name, self.header.file) or known

    def _take(self, message: Message, said: str | None = None) -> Frame | None:
        """Learn from what a check said; return the function that it names."""
        self.told = message
        self._set_class(message.class_, message.title)
        if "explained" in message.traits and said:
            self.title = f"{message.title}: {steady(said)}"
        if message.file:
            self.file, self.line = message.file, message.line
        return message.symbol

    def _say(self, said: str) -> None:
        said = steady(said) or self.header.what
        self.title = f"WARNING: {said}" if said else "WARNING"

    def _set_class(self, class_: str, title: str) -> None:
        """Take a class and a title, and what is true of findings of that class."""
        self.class_, self.title = class_, title
        self._traits = self.header.shape.traits | traits_of(class_)

    def _place(self, header: Header) -> None:
        if self.file is None:
            self.file, self.line = header.file, header.line

    def _is_null(self) -> None:
        self._set_class("null-dereference", "BUG: kernel NULL pointer dereference")


_SUSPICIOUS = re.compile(r"([^\s:]{1,255}):(\d{1,7}) (?:suspicious rcu_|invoked rcu_|Illegal context|.{0,80}usage)")
"""What lockdep says of RCU: where the macro stands (lockdep_rcu_suspicious())."""
