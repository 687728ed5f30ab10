"""Connect the user's terminal to a guest's console."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty

from kmlab.common.errors import LabError

_LEAVE = b"\x1d"
"""Ctrl-]"""


def attach(device: str) -> None:
    """Connect this terminal to the pty until Ctrl-] or until the guest ends."""
    if not sys.stdin.isatty():
        raise LabError("kmlab console needs a terminal", "kmlab log shows the kernel's log; kmlab ssh runs commands")
    try:
        console = os.open(device, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise LabError(f"{device}: the guest's console cannot be opened: {error.strerror}", "kmlab reset") from None
    sys.stderr.write("connected; leave with Ctrl-], press Enter for a prompt\n")
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        while True:
            ready, _, _ = select.select([0, console], [], [])
            if 0 in ready:
                typed = os.read(0, 1024)
                if not typed or _LEAVE in typed:
                    return
                os.write(console, typed)
            if console in ready:
                try:
                    shown = os.read(console, 65536)
                except OSError:
                    return
                if not shown:
                    return
                os.write(1, shown)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(console)
