"""A guest's first serial port, spoken to by a program: what MokManager needs, which runs before any network."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline


class SerialPort:
    """Both directions of an open port. Made by `opened`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read(self, deadline: Deadline) -> bytes | None:
        """What came, at the latest at the deadline: nothing yet is empty, None is a guest that has ended."""
        ready, _, _ = select.select([self._handle], [], [], deadline.left)
        if not ready:
            return b""
        try:
            return os.read(self._handle, 65536) or None
        except OSError:
            return None

    def type(self, keys: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._handle, keys)


@contextlib.contextmanager
def opened(device: str) -> Iterator[SerialPort]:
    """The port whose pty on the host is `device`. QEMU notices within a second that somebody is there."""
    try:
        handle = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"{device}: the guest's serial port cannot be opened: {error.strerror}") from None
    try:
        yield SerialPort(handle)
    finally:
        os.close(handle)
