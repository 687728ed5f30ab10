"""A memory dump as drgn and crash open it; follows makedumpfile(8), "-F", and its IMPLEMENTATION file.

QEMU writes a compressed dump in the flattened form, made for pipes: each piece with the offset that it belongs at.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from kmlab.common.errors import LabError

_HEADER = 4096
_SIGNATURE = b"makedumpfile\0"
_UTSNAME = 12
"""Where it is in a compressed dump: behind the signature and the version."""
_PIECE = struct.Struct(">qq")
_CHUNK = 1 << 20


def unflatten(source: Path, target: Path, limit: int, release: str, machine: str) -> bool:
    """Put the pieces of a flattened dump where they belong; False if that takes more than `limit` bytes."""
    with source.open("rb") as flat, target.open("w+b") as dump:
        if not flat.read(_HEADER).startswith(_SIGNATURE):
            raise LabError("QEMU wrote no dump in makedumpfile's flattened form")
        if not _place(flat, dump, limit):
            return False
        # QEMU leaves most of the header's utsname empty, and libkdumpfile, drgn's reader, then takes it for damaged.
        dump.seek(_UTSNAME)
        for name in ("Linux", "guest", release, "#1", machine, "(none)"):
            dump.write(name.encode()[:64].ljust(65, b"\0"))
    return True


def _place(flat: BinaryIO, dump: BinaryIO, limit: int) -> bool:
    while True:
        piece = flat.read(_PIECE.size)
        if len(piece) < _PIECE.size:
            raise LabError("the memory dump was cut short")
        offset, size = _PIECE.unpack(piece)
        if offset < 0:
            return True
        if offset + size > limit:
            return False
        dump.seek(offset)
        while size:
            content = flat.read(min(size, _CHUNK))
            if not content:
                raise LabError("the memory dump was cut short")
            dump.write(content)
            size -= len(content)
