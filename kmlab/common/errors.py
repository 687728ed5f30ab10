"""What the lab cannot do. What a module does wrong is never an exception; it is an outcome."""

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
    """A file or an argument of the person's is wrong; the message begins with file:line where there is one."""

    exit_code = 2


class LabError(KmlabError):
    """The lab could not do its part."""


def unexpected(error: BaseException, what: str) -> KmlabError:
    """Make one clear error of one that nobody foresaw, such as a full memory or a file that vanished; ours stay.

    `what` is what could not be done: "the build could not go on". Raise it `from error`, so that --debug shows where.
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
    return LabError(f"{what}: {detail}", "this is a mistake of kmlab's own: --debug shows where it is")


class HypervisorError(LabError):
    """libvirt or QEMU refused or failed."""


class HypervisorUnavailable(HypervisorError):
    """There is no connection to libvirt, so nothing could be asked of it."""


class ImageError(LabError):
    """An image, base or checkpoint is missing, altered, or could not be made."""


class GuestUnreachable(LabError):
    """A guest did not answer in time, or its connection broke."""


class BootPanicked(LabError):
    """A guest's kernel panicked while it booted, before any module was in it."""


class CommandFailed(LabError):
    """A program ended with a code that was not expected."""

    def __init__(self, argv: Sequence[str], code: int | None, tail: str, hint: str | None = None) -> None:
        how = "did not end in time" if code is None else f"ended with code {code}"
        last = f": {tail.strip()}" if tail.strip() else ""
        super().__init__(f"{argv[0]} {how}{last}", hint)
        self.argv = list(argv)
        self.code = code
        self.tail = tail
