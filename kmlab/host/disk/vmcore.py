"""Convert QEMU's memory dump to the form that drgn and crash open (makedumpfile(8), "-F", and its IMPLEMENTATION file).

QEMU writes a compressed dump in the flattened form for pipes: each piece has the offset where it belongs.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from kmlab.common.errors import LabError

_HEADER = 4096
_SIGNATURE = b"makedumpfile\0"
_UTSNAME = 12
"""The offset of utsname in a compressed dump: after the signature and the version."""
_PIECE = struct.Struct(">qq")
_CHUNK = 1 << 20


def unflatten(source: Path, target: Path, limit: int, release: str, machine: str) -> bool:
    """Write the pieces of a flattened dump to their offsets. Return False if that needs more than `limit` bytes."""
    with source.open("rb") as flat, _private(target) as dump:
        if not flat.read(_HEADER).startswith(_SIGNATURE):
            raise LabError("QEMU's memory dump is not in makedumpfile's flattened form")
        if not _copy_pieces(flat, dump, limit):
            return False
        # QEMU leaves most of the header's utsname empty. libkdumpfile, which drgn uses, rejects such a dump as corrupt.
        dump.seek(_UTSNAME)
        for name in ("Linux", "guest", release, "#1", machine, "(none)"):
            dump.write(name.encode()[:64].ljust(65, b"\0"))
    return True


def _private(target: Path) -> BinaryIO:
    """Create a file that only its owner can read: a guest's memory may hold what nobody else should see."""
    target.unlink(missing_ok=True)
    return open(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b")


def _copy_pieces(flat: BinaryIO, dump: BinaryIO, limit: int) -> bool:
    while True:
        piece = flat.read(_PIECE.size)
        if len(piece) < _PIECE.size:
            raise LabError("the memory dump is truncated")
        offset, size = _PIECE.unpack(piece)
        if offset < 0:
            return True
        if offset + size > limit:
            return False
        dump.seek(offset)
        while size:
            content = flat.read(min(size, _CHUNK))
            if not content:
                raise LabError("the memory dump is truncated")
            dump.write(content)
            size -= len(content)
