"""Read and write a guest's first serial port, for MokManager, which runs before the network is up."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline


class SerialPort:
    """An open serial port. Use `opened` to make one."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read(self, deadline: Deadline) -> bytes | None:
        """Wait for output until the deadline and return it: empty if there is none, None if the guest has ended."""
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
    """Open the serial port whose pty on the host is `device`. QEMU notices this within a second."""
    try:
        handle = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"{device}: cannot open the guest's serial port: {error.strerror}") from None
    try:
        yield SerialPort(handle)
    finally:
        os.close(handle)
