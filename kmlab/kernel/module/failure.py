"""A failure to load or unload, and the errors that the kernel gives by name; follows errno(3), insmod(8)."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from kmlab.common.events import printable


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure to load or unload."""

    kind: str
    """A word for programs: vermagic, unknown-symbol, gpl-only, init-error, signature, in-use and so on."""
    reason: str
    """One sentence in plain words and what to do about it."""
    symbol: str | None = None
    errno: str | None = None
    """The error's name, as in errno.h."""
    subject: str | None = None
    """What else it is about: a module, a parameter, a firmware file."""


def explain_errno(name: str) -> str:
    """Return what an error means when a module's init returns it; empty for one with nothing to add."""
    return _INIT_ERRORS.get(name, "")


def errno_of(stderr: str) -> str | None:
    """Return the error in insmod's last line: `insmod: ERROR: could not insert module x.ko: Words`."""
    words = last_line(stderr).rpartition(": ")[2].strip().lower().removeprefix("error: ")
    if words in _BY_WORDS:
        return _BY_WORDS[words]
    number = re.fullmatch(r"unknown error (\d+)", words)
    if number:
        return errno_name(int(number[1]))
    return next((name for text, name in _BY_WORDS.items() if text in last_line(stderr).lower()), None)


def errno_name(number: int) -> str:
    return errno.errorcode.get(number, f"E{number}")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1], 200).rstrip(".") if lines else ""


_INIT_ERRORS = {
    "EPERM": "not permitted; a plain -1 is this, too",
    "ENOENT": "something that it looked for is not there",
    "EIO": "input or output failed",
    "EAGAIN": "to be tried again",
    "ENOMEM": "memory could not be had",
    "EACCES": "access was denied",
    "EFAULT": "a bad address",
    "EBUSY": "a device, number or resource is taken by somebody else",
    "EEXIST": "something of that name is registered already",
    "ENODEV": "the device that it is for is not in this machine",
    "ENXIO": "no such device or address",
    "EINVAL": "an invalid argument, perhaps a parameter",
    "ENOSPC": "no room left",
    "ERANGE": "a value out of range",
    "ENOSYS": "a function of the kernel's whose option is off, such as gpio_request() without CONFIG_GPIOLIB",
    "EOPNOTSUPP": "not supported here",
    "EPROBE_DEFER": "something it needs is not ready yet",
    "ETIMEDOUT": "something did not answer in time",
}

# What strerror() says, back to the names; both 11 spellings and the kernel-only ones that a libc cannot name.
_BY_WORDS = {
    "operation not permitted": "EPERM",
    "no such file or directory": "ENOENT",
    "unknown symbol in module": "ENOENT",
    "unknown symbol in module, or unknown parameter": "ENOENT",
    "input/output error": "EIO",
    "no such device or address": "ENXIO",
    "exec format error": "ENOEXEC",
    "invalid module format": "ENOEXEC",
    "bad file descriptor": "EBADF",
    "resource temporarily unavailable": "EAGAIN",
    "cannot allocate memory": "ENOMEM",
    "permission denied": "EACCES",
    "bad address": "EFAULT",
    "device or resource busy": "EBUSY",
    "file exists": "EEXIST",
    "no such device": "ENODEV",
    "invalid argument": "EINVAL",
    "invalid parameters": "EINVAL",
    "no space left on device": "ENOSPC",
    "numerical result out of range": "ERANGE",
    "function not implemented": "ENOSYS",
    "operation not supported": "EOPNOTSUPP",
    "connection timed out": "ETIMEDOUT",
    "key was rejected by service": "EKEYREJECTED",
    "required key not available": "ENOKEY",
    "package not installed": "ENOPKG",
    "bad message": "EBADMSG",
    "unknown error 517": "EPROBE_DEFER",
    "unknown error 524": "ENOTSUPP",
}
