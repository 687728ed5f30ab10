"""Judging a kernel log that somebody saved: no guest, no lab."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from kmlab.errors import ConfigError
from kmlab.events import printable
from kmlab.kernel.klog import ConsoleReader
from kmlab.kernel.locating import located
from kmlab.kernel.modinfo import parse_modinfo
from kmlab.kernel.oops import Crash, Scanner

_CHUNK = 1 << 20


def judge_file(file: str, module: Path | None = None) -> list[Crash]:
    """The findings in a log ("-" is stdin); with the module's .ko, or a folder of them, also their lines."""
    images = _images(module) if module else {}
    own = frozenset(parse_modinfo(image, path).name for path, image in images.items())
    reader, scanner = ConsoleReader(), Scanner(own)
    try:
        with open(file, "rb") if file != "-" else open(sys.stdin.fileno(), "rb", closefd=False) as log:
            while chunk := log.read(_CHUNK):
                scanner.feed(reader.feed(chunk))
    except OSError as error:
        raise ConfigError(f"{printable(file)}: cannot read this log: {error.strerror}") from None
    scanner.feed(reader.close())
    scanner.close()
    root = None if module is None or module.is_file() else PurePosixPath(module.resolve())
    return [located(crash, images, root) for crash in scanner.crashes]


def _images(module: Path) -> dict[str, bytes]:
    files = [module] if module.is_file() else sorted(module.rglob("*.ko"))
    if not files:
        raise ConfigError(f"{printable(str(module))}: no .ko here", "build the module first, with debug information")
    try:
        return {str(file): file.read_bytes() for file in files}
    except OSError as error:
        raise ConfigError(f"{printable(str(module))}: cannot read: {error.strerror}") from None
