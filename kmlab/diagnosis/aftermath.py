"""Find what a guest's kernel reports in the seconds after something was done to it from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.log.records import parse_log

_DELAY = 2.0
"""Seconds in which work that was put off still runs."""
_MOST = 4 << 20


@contextlib.contextmanager
def findings_after(console: Path, found: list[Crash]) -> Iterator[None]:
    """Add to `found` what the kernel reports on its console during the block and shortly after it."""
    began = console.stat().st_size if console.exists() else 0
    try:
        yield
    finally:
        time.sleep(_DELAY)
        with contextlib.suppress(OSError), console.open("rb") as file:
            file.seek(began)
            crashes = find_crashes(parse_log(file.read(_MOST)).records)
            found += crashes
