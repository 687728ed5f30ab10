"""What a file is that was given for a kernel's log and has not one line of a kernel's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from kmlab.kernel.log.records import Record


class Other(NamedTuple):
    """What a file is instead, and what can be done about it."""

    what: str
    remedy: str
    """With the place of the file as `{}`."""


SAVE = "save one with `dmesg > FILE`, `journalctl --dmesg > FILE`, or give a guest's console.log"
_BESIDE = "give the log that was saved beside it, such as console.log"
_KINDS = (
    (b"\x1f\x8b", Other("compressed by gzip", "zcat {} | kmlab crashes -")),
    (b"\xfd7zXZ\x00", Other("compressed by xz", "xzcat {} | kmlab crashes -")),
    (b"\x28\xb5\x2f\xfd", Other("compressed by zstd", "zstdcat {} | kmlab crashes -")),
    (b"BZh", Other("compressed by bzip2", "bzcat {} | kmlab crashes -")),
    (b"\xff\xfe", Other("text in UTF-16", "iconv --from-code=UTF-16 --to-code=UTF-8 {} | kmlab crashes -")),
    (b"LPKSHHRH", Other("a file of systemd's journal", "journalctl --dmesg --file={} | kmlab crashes -")),
    (b"KDUMP   ", Other("a memory dump", _BESIDE)),
    (b"makedumpfile\x00", Other("a memory dump", _BESIDE)),
    (b"\x7fELF", Other("an ELF file", f"a module's .ko is what --module takes; {SAVE}")),
    (b"%PDF-", Other("a PDF", SAVE)),
    (b"\x89PNG\r\n\x1a\n", Other("a picture", f"what is on it must be text; {SAVE}")),
    (b"\xff\xd8\xff", Other("a picture", f"what is on it must be text; {SAVE}")),
    (b"PK\x03\x04", Other("a zip archive", "unzip -p {} | kmlab crashes -")),
)
"""By the first bytes, with which no log begins: file(1)'s magic, and systemd's JOURNAL_FILE_FORMAT."""


def kind_of(head: bytes) -> Other | None:
    """Return what a file with these first bytes certainly is, if that is no text."""
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), None)


class Doubt:
    """Whether lines without a kernel's prefix (`dmesg -t`, copied by hand) may be a kernel's all the same."""

    def __init__(self) -> None:
        self.prefixed = False
        """Some line says itself who wrote it: no others are then taken for the kernel's."""
        self._known = False
        self.lines = 0
        """Lines that were heard so far, up to the first that says who wrote it."""
        self._named = 0

    def hear(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.prefixed:
                self.prefixed = True
                return
            self.lines += 1
            self._named += bool(_NAMED.match(record.text))
            self._known = self._known or bool(_KNOWN.search(record.text))

    @property
    def reason(self) -> str | None:
        """Why this is no kernel log; None where it may be one."""
        if self.prefixed or self._known or self._named * 2 > self.lines:
            return None
        if not self.lines:
            return "it is empty"
        lines = f"none of its {self.lines} lines looks" if self.lines > 1 else "its one line does not look"
        return f"{lines} like a kernel's"


_NAMED = re.compile(r"[\w-]{2,}(?: [\w.:-]+){0,2}: \S")
"""`MODULE: text` or `DRIVER DEVICE: text`, as pr_fmt() and dev_printk() begin nearly all that modules say."""
_KNOWN = re.compile(
    r"^(?:Linux version \d|Booting Linux on |(?:Kernel c|C)ommand line: |BIOS-e820: |Call Trace:|Modules linked in:"
    r"|ACPI: |NET: Registered |EXT4-fs |random: crng |clocksource: |audit: type=|systemd\[1\]: |usb \d+-\d"
    r"|\[ {1,2}OK {1,2}\] )"
    r"|^\S+ (?:\S+ )?[0-9a-f]{4}:[0-9a-f]\d:[01]\d\.\d\b"
    r"|: loading out-of-tree module taints kernel|: module verification failed: signature"
)
"""What hardly anybody but a kernel, or a boot at its console, says."""
