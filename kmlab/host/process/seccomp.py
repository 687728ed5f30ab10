"""Make the filter of system calls that keeps a sandbox from making user namespaces (seccomp(2), bpf(4)).

In a user namespace of its own, a program has all capabilities, and reaches parts of the kernel that only root reaches
otherwise. bubblewrap's --disable-userns prevents that only together with --unshare-user.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

_CLONE_NEWUSER = 0x10000000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_NOT_BELOW, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; the first argument's lower half, as both architectures are little-endian."""


class _Calls(NamedTuple):
    """What a machine calls itself, and its numbers of system calls (audit.h, unistd.h)."""

    audit: int
    clone: int
    unshare: int
    clone3: int
    highest: int
    """The first number of another set of calls: x32's on x86-64."""


_MACHINES = {
    "x86_64": _Calls(0xC000003E, clone=56, unshare=272, clone3=435, highest=0x40000000),
    "aarch64": _Calls(0xC00000B7, clone=220, unshare=97, clone3=435, highest=0xFFFFFFFF),
}


def no_user_namespaces(machine: str | None = None) -> bytes | None:
    """Return the program for bwrap's --seccomp; None for a machine whose calls are not known here.

    clone3(2) does not exist in it: its flags lie in memory, where a filter cannot look. The C library then uses clone.
    """
    calls = _MACHINES.get(machine or os.uname().machine)
    if calls is None:
        return None
    absent, refused = _ERRNO | errno.ENOSYS, _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, calls.audit),
        (_RETURN, 0, 0, absent),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_NOT_BELOW, 3, 0, calls.highest),
        (_JUMP_IF_EQUAL, 2, 0, calls.clone3),
        (_JUMP_IF_EQUAL, 2, 0, calls.clone),
        (_JUMP_IF_EQUAL, 1, 4, calls.unshare),
        (_RETURN, 0, 0, absent),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_BITS, 0, 1, _CLONE_NEWUSER),
        (_RETURN, 0, 0, refused),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
