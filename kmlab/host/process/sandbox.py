"""Run untrusted programs, such as a module's Makefile, on the host in a bubblewrap sandbox (bwrap(1)).

They see a read-only root, one writable folder, a private /tmp, no network, and no files of the user. The kernel limits
each process (setrlimit(2)). A thread of kmlab limits the sum, because cgroups are not available to every user. If kmlab
runs as root, the programs run as a user without any permissions.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kmlab.common import folder_tree
from kmlab.common.errors import CommandFailed, LabError, unexpected
from kmlab.common.events import Deadline, printable
from kmlab.host.process import command, seccomp
from kmlab.host.process.footprint import MemoryMeter

PLACES = ("proc", "dev", "tmp", "root", "var/lib/kmlab/modules")
"""Folders that a sandbox's root must have as mount points."""
_MODULES_FOLDER = "/var/lib/kmlab/modules"
_CHECK_SECONDS = 0.02
"""Seconds between two checks of the host's number of threads. They are cheap, and a fork bomb is fast."""
_MEASURE_INTERVAL = 10
"""The sandbox's own processes are measured at every tenth check."""
_MAX_UNEXPLAINED = 4 << 30
"""Accepted growth of unattributed files in memory, in bytes. Other programs of an ordinary host stay below it."""
_MAX_PROCESSES = 4096
"""The kernel's own limit against a fork bomb. Before Linux 5.14 it counts all processes of the user."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ULIMITS = (
    # In dash and busybox -p limits processes. In bash it is something else, and read-only.
    "ulimit -c 0; ulimit -v {memory} 2>/dev/null; ulimit -f {file} 2>/dev/null; "
    'ulimit -p {processes} 2>/dev/null || ulimit -u {processes} 2>/dev/null; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What all programs of a sandbox may use together. The deadline limits the time."""

    memory: int = 4 << 30
    """Bytes of memory, including files in memory; also the address space of each program."""
    processes: int = 512
    disk: int = 8 << 30
    """Bytes by which the free space of the disk may shrink."""
    files: int = 200_000
    """New files and folders, on the disk and in memory."""
    file: int = 1 << 30
    """Bytes of each file."""
    output: int = 64 << 20
    """Characters of output, which kmlab keeps."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """The result of a program in a sandbox."""

    code: int | None
    """The exit code; None if the deadline passed."""
    output: str
    limit: str | None = None
    """The limit that the program exceeded, if kmlab killed it for that."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A root file system for programs, and a folder of the host that they may write to."""

    root: Path
    """A folder on the host with a file system's tree, with all of PLACES."""
    folder: Path
    name: str
    """The sandbox sees the folder as /var/lib/kmlab/modules/NAME."""
    limits: Limits = field(default_factory=Limits)
    release: str | None = None
    """The output of `uname -r` in the sandbox: the kernel that Makefiles build for. None means the host's."""

    @property
    def inside(self) -> PurePosixPath:
        """Return the folder's path in the sandbox."""
        return PurePosixPath(_MODULES_FOLDER) / self.name

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        cwd: PurePosixPath | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> SandboxResult:
        """Run one program to its end, with all its children. Its failures are results, not exceptions."""
        lines: list[str] = []
        size = 0

        def add_line(line: str) -> None:
            nonlocal size
            size += len(line) + 1
            if size > self.limits.output:
                monitor.too_much_output = True
                return
            lines.append(line)
            if on_line:
                on_line(line)

        if os.geteuid() == 0:
            _make_writable(self.folder)
        reader, writer = os.pipe()
        monitor = _LimitMonitor(reader, self.folder, self.limits)
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, reader)
                with open(writer, "wb"):
                    info = stack.enter_context(command.inheritable(writer))
                uname = stack.enter_context(_uname(self))
                calls = stack.enter_context(_filter())
                stack.enter_context(monitor)
                ended = command.run(
                    [*_bwrap(self, info, uname, calls, cwd or self.inside, environment or {}), *argv],
                    deadline=deadline,
                    on_line=add_line,
                    accept=range(-64, 256),
                    pass_files=tuple(handle for handle in (info, uname, calls) if handle is not None),
                )
        except CommandFailed:
            monitor.check()
            return SandboxResult(None, "".join(f"{line}\n" for line in lines), monitor.exceeded)
        monitor.check()
        if ended.code == 1 and ended.output.startswith("bwrap: "):
            raise _sandbox_error(ended.output)
        return SandboxResult(ended.code, ended.output, monitor.exceeded)


def check() -> None:
    """Raise LabError with a remedy unless bubblewrap works on this host for this user."""
    userns = ("--unshare-user",) if os.geteuid() else ()
    mounts = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    try:
        command.run(["bwrap", *_ISOLATED, *userns, *mounts, "--", "true"], deadline=Deadline(10))
    except CommandFailed as error:
        raise _sandbox_error(error.tail) from None


_ISOLATED = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent", "--new-session")
_SANDBOX_UID = 0x6B6D6C62
"""The user id of root's sandboxes, which no host uses. Root itself has no RLIMIT_NPROC (setrlimit(2)), and owns the
files of /proc/sys even without capabilities."""


_UNAME = """\
#!/bin/sh
options=" $* "
output=
print_field() {{
	case $options in
	*" --$2 "* | *" --all "*) output="$output${{output:+ }}$3" ;;
	*)
		for word in $options; do
			case $word in
			--*) ;;
			-*[a$1]*) output="$output${{output:+ }}$3" && break ;;
			esac
		done
		;;
	esac
}}
[ $# -gt 0 ] || options=" -s "
print_field s kernel-name Linux
print_field n nodename lab
print_field r kernel-release {release}
print_field v kernel-version '#1 SMP'
print_field m machine {machine}
print_field o operating-system GNU/Linux
echo "$output"
"""
"""A uname(1) that prints the guest kernel's release, because no namespace can change it."""


@contextlib.contextmanager
def _uname(box: Sandbox) -> Iterator[int | None]:
    """Yield a nameless open file with the sandbox's uname; None if the host's is right or there is none."""
    if box.release is None or not (box.root / "usr/bin/uname").is_file():
        yield None
        return
    with open(os.memfd_create("uname"), "wb", buffering=0) as file, command.inheritable(file.fileno()) as handle:
        file.write(_UNAME.format(release=shlex.quote(box.release), machine=os.uname().machine).encode())
        file.seek(0)
        yield handle


@contextlib.contextmanager
def _filter() -> Iterator[int | None]:
    """Yield an open file with the filter against user namespaces, where bubblewrap cannot forbid them itself."""
    program = None
    if os.geteuid() == 0 or not _bwrap_supports("--disable-userns"):
        program = seccomp.no_user_namespaces()
    if program is None:
        yield None
        return
    with open(os.memfd_create("seccomp"), "wb", buffering=0) as file, command.inheritable(file.fileno()) as handle:
        file.write(program)
        file.seek(0)
        yield handle


def _bwrap(
    box: Sandbox,
    info: int,
    uname: int | None,
    calls: int | None,
    cwd: PurePosixPath,
    environment: Mapping[str, str],
) -> list[str]:
    limits = box.limits
    # The sandbox can read bwrap's own environment in /proc/1/environ, so the user's tokens must not be in it.
    argv = ["env", "--ignore-environment", command.find("bwrap"), *_ISOLATED, "--info-fd", str(info)]
    if os.geteuid() == 0:
        argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--hostname", "lab"]
        become = ["setpriv", f"--reuid={_SANDBOX_UID}", f"--regid={_SANDBOX_UID}", "--clear-groups", "--inh-caps=-all"]
        become += ["--no-new-privs", "--"]
    else:
        argv += ["--unshare-user", "--uid", "0", "--gid", "0", "--cap-drop", "ALL", "--hostname", "lab"]
        argv += ["--disable-userns"] if _bwrap_supports("--disable-userns") else []  # since bubblewrap 0.8.0
        become = []
    # bwrap covers /proc/sys only if that folder itself is writable, no matter who owns the files in it.
    argv += ["--ro-bind", str(box.root), "/", "--proc", "/proc", "--remount-ro", "/proc"]
    argv += [] if uname is None else ["--perms", "0755", "--ro-bind-data", str(uname), "/usr/bin/uname"]
    argv += [] if calls is None else ["--seccomp", str(calls)]
    argv += ["--dev", "/dev", "--remount-ro", "/dev"]
    argv += [*_tmpfs("/tmp"), *_tmpfs("/root"), "--tmpfs", _MODULES_FOLDER, "--bind", str(box.folder), str(box.inside)]
    argv += ["--remount-ro", _MODULES_FOLDER, "--chdir", str(cwd), "--clearenv"]
    for key, value in {"PATH": _PATH, "HOME": "/root", "TMPDIR": "/tmp", "LC_ALL": "C", **environment}.items():
        argv += ["--setenv", key, value]
    # As root, only this sandbox has processes of that user, so the limit can be low.
    processes = _MAX_PROCESSES if os.geteuid() else 2 * limits.processes
    script = _ULIMITS.format(memory=limits.memory >> 10, file=limits.file >> 9, processes=processes)
    return [*argv, "--", *become, "/bin/sh", "-c", script, "sh"]


def _make_writable(folder: Path) -> None:
    """Give a folder to the user of root's sandboxes, without following links."""
    with folder_tree.opened(folder) as top:
        os.fchown(top, _SANDBOX_UID, _SANDBOX_UID)
        for entry in folder_tree.walk(top):
            os.chown(entry.name, _SANDBOX_UID, _SANDBOX_UID, dir_fd=entry.parent, follow_symlinks=False)


def _tmpfs(place: str) -> list[str]:
    # Since bubblewrap 0.7.0 a tmpfs can have a size; before, it is half of the memory.
    return [*(("--size", str(1 << 30)) if _bwrap_supports("--size") else ()), "--perms", "1777", "--tmpfs", place]


@functools.cache
def _bwrap_supports(option: str) -> bool:
    with contextlib.suppress(LabError):
        return option in command.run(["bwrap", "--help"], deadline=Deadline(10)).output
    return False


def _sandbox_error(output: str) -> LabError:
    lines = [line for line in output.splitlines() if line.startswith("bwrap: ")]
    what = printable(lines[0].removeprefix("bwrap: "), 200) if lines else "it did not run"
    return LabError(f"bubblewrap cannot make a sandbox here: {what}", _remedy())


def _remedy() -> str:
    """Return the hint: the sysctl that forbids user namespaces on this host (user_namespaces(7), namespaces(7))."""
    alternative = "or build in the guest: `build: guest`"
    profile = apparmor_remedy()
    if profile:
        return f"AppArmor forbids bubblewrap to make user namespaces: load its profile: {profile}; {alternative}"
    switches = {
        "kernel/unprivileged_userns_clone": ("0", "1"),
        "user/max_user_namespaces": ("0", "10000"),
    }
    for switch, (bad, good) in switches.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", switch).read_text(encoding="ascii").strip() == bad:
                name = switch.replace("/", ".")
                return f"user namespaces are forbidden: sudo sysctl -w {name}={good}, {alternative}"
    return f"does `bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true` run? {alternative}"


_RESTRICTED = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_PROFILE = "bwrap-userns-restrict"
"""AppArmor's own profile for bubblewrap. Ubuntu 24.04 does not load it; 25.04 and later do."""


def apparmor_remedy() -> str:
    """Return the shell line that loads AppArmor's profile for bubblewrap; empty if AppArmor restricts nothing here.

    Only bubblewrap gets user namespaces then. The sysctl would give them to every program of the host.
    """
    with contextlib.suppress(OSError):
        if _RESTRICTED.read_text(encoding="ascii").strip() == "1":
            source = f"/usr/share/apparmor/extra-profiles/{_PROFILE}"
            sudo = "" if os.geteuid() == 0 else "sudo "
            return (
                f"{sudo}apt-get install --yes apparmor-profiles && {sudo}cp {source} /etc/apparmor.d/ && "
                f"{sudo}apparmor_parser --replace /etc/apparmor.d/{_PROFILE}"
            )
    return ""


class _LimitMonitor:
    """Check a sandbox's processes and disk in a thread, and kill the sandbox if they exceed a limit."""

    def __init__(self, info: int, folder: Path, limits: Limits) -> None:
        self.exceeded: str | None = None
        self.too_much_output = False
        self.failed: Exception | None = None
        """The exception that stopped the checks. The sandbox is then killed, because nothing limits it."""
        self._info, self._folder, self._limits = info, folder, limits
        self._stopped = threading.Event()
        self._info_text = b""
        self._first: int | None = None
        self._disk_before = os.statvfs(folder)
        self._threads_before = _threads()
        self._meter = MemoryMeter()
        self._thread = threading.Thread(target=self._check_limits, daemon=True, name="sandbox")

    def __enter__(self) -> _LimitMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Raise LabError if the sandbox ran without checks."""
        if self.failed is not None:
            raise unexpected(self.failed, "the sandbox could not be watched")

    def _check_limits(self) -> None:
        turn = 0
        while not self._stopped.wait(_CHECK_SECONDS):
            turn += 1
            try:
                self._first = self._first or self._child_pid()
                what = self._excess(turn) if self.failed is None else "can be watched"
            except Exception as error:
                self.failed, what = error, None
                continue
            if what and self._first is not None:
                self._end(self._first, what)
                return

    def _child_pid(self) -> int | None:
        """Read the first process's id, which bwrap writes in pieces when the namespaces exist; None if not yet."""
        if select.select([self._info], [], [], 0)[0]:
            self._info_text += os.read(self._info, 4096)
        match = _CHILD.search(self._info_text)
        return int(match[1]) if match else None

    def _excess(self, turn: int) -> str | None:
        """Return the exceeded limit; None if there is none, or if nothing was measured in this turn."""
        limits, first = self._limits, self._first
        if first is not None and self.too_much_output:
            return f"{limits.output / 2**20:.0f} MiB of output"
        new_threads = _threads() - self._threads_before
        if first is None or (turn % _MEASURE_INTERVAL and new_threads <= limits.processes):
            return None
        footprint = self._meter.measure(first)
        before, now = self._disk_before, os.statvfs(self._folder)
        disk_used = (before.f_bfree - now.f_bfree) * now.f_frsize
        # A file system without a fixed number of files, such as btrfs, reports 0.
        files = footprint.files + (before.f_ffree - now.f_ffree if now.f_files else 0)
        if footprint.processes > limits.processes:
            return f"{limits.processes} processes"
        if footprint.memory > limits.memory or footprint.unexplained > max(limits.memory, _MAX_UNEXPLAINED):
            return f"{limits.memory / 2**30:.1f} GiB of memory"
        if disk_used > limits.disk:
            return f"{limits.disk / 2**30:.1f} GiB of disk"
        return f"{limits.files} files" if files > limits.files else None

    def _end(self, first: int, what: str) -> None:
        self.exceeded = what
        # When the first process of a pid namespace ends, all others end (pid_namespaces(7)).
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)


_CHILD = re.compile(rb'"child-pid":\s*(\d+)\s*[,}]')


def _threads() -> int:
    """Return the number of threads of this host (proc(5), /proc/loadavg)."""
    return int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
