"""Define the exceptions of the lab. A module's failure is never an exception; it is an outcome."""

from __future__ import annotations

from collections.abc import Sequence


class KmlabError(Exception):
    """One clear error: what happened and where (`message`), and what to do about it (`hint`)."""

    exit_code = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(KmlabError):
    """A file or an argument of the user is wrong. The message begins with file:line if there is one."""

    exit_code = 2


class LabError(KmlabError):
    """The lab failed, not the module."""


class Cancelled(LabError):
    """Whoever asked for the work does not want it any more."""


def unexpected(error: BaseException, what: str) -> KmlabError:
    """Turn an unforeseen exception, such as MemoryError, into one clear error. Return a KmlabError unchanged.

    `what` names the part that failed: "the build could not go on". Raise the result `from error`, so that --debug shows
    the traceback.
    """
    if isinstance(error, KmlabError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return LabError(f"{what}: the command was ended")
    if isinstance(error, MemoryError):
        return LabError(
            f"{what}: this host has no memory left for it", "end other programs, or run fewer guests at once"
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return LabError(f"{what}: {place}{error.strerror}")
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return LabError(f"{what}: {detail}", "this is a bug in kmlab: --debug shows where it is")


class HypervisorError(LabError):
    """libvirt or QEMU refused or failed."""


class HypervisorUnavailable(HypervisorError):
    """There is no connection to libvirt."""


class ImageError(LabError):
    """An image, base or checkpoint is missing, altered, or could not be made."""


class GuestUnreachable(LabError):
    """A guest did not answer in time, or its connection broke."""


class BootPanicked(LabError):
    """A guest's kernel panicked while it booted, before any module was loaded."""


class BootStuck(GuestUnreachable):
    """A guest stopped to make progress while it booted, before any module was loaded."""


class CommandFailed(LabError):
    """A program ended with an unexpected exit code, or did not end in time."""

    def __init__(self, argv: Sequence[str], code: int | None, tail: str, hint: str | None = None) -> None:
        how = "did not end in time" if code is None else f"ended with code {code}"
        last = f": {tail.strip()}" if tail.strip() else ""
        super().__init__(f"{argv[0]} {how}{last}", hint)
        self.argv = list(argv)
        self.code = code
        self.tail = tail
