"""Untrusted programs on the host, shut in by bubblewrap (bwrap(1)): a module's Makefile is one.

They see a read-only root of our choice, one folder to write in, a private /tmp, no network, nothing of the person's.
The kernel's own limits hold for each process (setrlimit(2)); the sum of all is watched from outside, because cgroups
are not at every ordinary user's disposal. Where kmlab runs as root, they run as a user without any rights.
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
from kmlab.host.process import command
from kmlab.host.process.footprint import Measure

PLACES = ("proc", "dev", "tmp", "root", "var/lib/kmlab/modules")
"""Folders that a sandbox's root must have, for something to be mounted on."""
_WORKSHOP = "/var/lib/kmlab/modules"
_EVERY = 0.02
"""Seconds between two looks at how many threads the whole host has: one line to read, and a fork bomb is quick."""
_THOROUGH = 10
"""Every so many looks, what the sandbox's own processes use is added up."""
_UNEXPLAINED = 4 << 30
"""Bytes of files in memory that come up meanwhile, and that nothing else on an ordinary host would keep for itself."""
_MOST_PROCESSES = 4096
"""Where the kernel itself stops a fork bomb. Before Linux 5.14 it counts all processes of the person's."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ULIMITS = (
    # dash and busybox count processes with -p, which bash knows as another thing, and read-only.
    "ulimit -c 0; ulimit -v {memory} 2>/dev/null; ulimit -f {file} 2>/dev/null; "
    'ulimit -p {processes} 2>/dev/null || ulimit -u {processes} 2>/dev/null; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What all programs of a sandbox may use together. Time is the deadline's."""

    memory: int = 4 << 30
    """Bytes in memory, those of files that lie in memory too; also the address space of any one of them."""
    processes: int = 512
    disk: int = 8 << 30
    """Bytes by which the room on the disk may shrink meanwhile."""
    files: int = 200_000
    """Files and folders by which the disk's number of them may grow meanwhile, with those in memory."""
    file: int = 1 << 30
    """Bytes of any one file."""
    output: int = 64 << 20
    """Characters that they may say; we keep them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program in a sandbox ended."""

    code: int | None
    """None: not in time."""
    output: str
    limit: str | None = None
    """What it used too much of, if that is what ended it."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A root to run programs in, and a folder of the host's that they may write in."""

    root: Path
    """A file system's tree on the host, with all of PLACES."""
    folder: Path
    name: str
    """The folder is at /var/lib/kmlab/modules/NAME inside."""
    limits: Limits = field(default_factory=Limits)
    release: str | None = None
    """What `uname -r` says inside: a Makefile takes it for the kernel to build for. None: the host's."""

    @property
    def inside(self) -> PurePosixPath:
        """Where the folder is for the programs."""
        return PurePosixPath(_WORKSHOP) / self.name

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        cwd: PurePosixPath | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Ended:
        """Run one program to its end; never raises for what it does. All its children are gone afterwards."""
        heard: list[str] = []
        said = 0

        def hear(line: str) -> None:
            nonlocal said
            said += len(line) + 1
            if said > self.limits.output:
                watch.heard_too_much = True
                return
            heard.append(line)
            if on_line:
                on_line(line)

        if os.geteuid() == 0:
            _give(self.folder)
        reader, writer = os.pipe()
        watch = _Watch(reader, self.folder, self.limits)
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, reader)
                with open(writer, "wb"):
                    info = stack.enter_context(command.passed(writer))
                uname = stack.enter_context(_uname(self))
                stack.enter_context(watch)
                ended = command.run(
                    [*_bwrap(self, info, uname, cwd or self.inside, environment or {}), *argv],
                    deadline=deadline,
                    on_line=hear,
                    accept=range(-64, 256),
                    pass_files=(info, *(() if uname is None else (uname,))),
                )
        except CommandFailed:
            watch.check()
            return Ended(None, "".join(f"{line}\n" for line in heard), watch.exceeded)
        watch.check()
        if ended.code == 1 and ended.output.startswith("bwrap: "):
            raise _refused(ended.output)
        return Ended(ended.code, ended.output, watch.exceeded)


def check() -> None:
    """LabError with a remedy unless bubblewrap works here, for this person."""
    userns = ("--unshare-user",) if os.geteuid() else ()
    mounts = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    try:
        command.run(["bwrap", *_ISOLATED, *userns, *mounts, "--", "true"], deadline=Deadline(10))
    except CommandFailed as error:
        raise _refused(error.tail) from None


_ISOLATED = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent", "--new-session")
_ALIEN = 0x6B6D6C62
"""The user that root's sandboxes run as, whom no host knows. Root itself is bound by no RLIMIT_NPROC (setrlimit(2)),
and owns the files of /proc/sys even where it has no capability."""


_UNAME = """\
#!/bin/sh
asked=" $* "
said=
tell() {{
	case $asked in
	*" --$2 "* | *" --all "*) said="$said${{said:+ }}$3" ;;
	*)
		for word in $asked; do
			case $word in
			--*) ;;
			-*[a$1]*) said="$said${{said:+ }}$3" && break ;;
			esac
		done
		;;
	esac
}}
[ $# -gt 0 ] || asked=" -s "
tell s kernel-name Linux
tell n nodename lab
tell r kernel-release {release}
tell v kernel-version '#1 SMP'
tell m machine {machine}
tell o operating-system GNU/Linux
echo "$said"
"""
"""uname(1) as the guest would have it: its kernel's release cannot be had by any namespace."""


@contextlib.contextmanager
def _uname(box: Sandbox) -> Iterator[int | None]:
    """A file without a name that holds the sandbox's uname, from its beginning."""
    if box.release is None or not (box.root / "usr/bin/uname").is_file():
        yield None
        return
    with open(os.memfd_create("uname"), "wb", buffering=0) as file, command.passed(file.fileno()) as handle:
        file.write(_UNAME.format(release=shlex.quote(box.release), machine=os.uname().machine).encode())
        file.seek(0)
        yield handle


def _bwrap(box: Sandbox, info: int, uname: int | None, cwd: PurePosixPath, environment: Mapping[str, str]) -> list[str]:
    limits = box.limits
    # bwrap's own environment is there for all to read in /proc/1/environ, so the person's tokens must not be in it.
    argv = ["env", "--ignore-environment", command.find("bwrap"), *_ISOLATED, "--info-fd", str(info)]
    if os.geteuid() == 0:
        argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--hostname", "lab"]
        become = ["setpriv", f"--reuid={_ALIEN}", f"--regid={_ALIEN}", "--clear-groups", "--inh-caps=-all"]
        become += ["--no-new-privs", "--"]
    else:
        argv += ["--unshare-user", "--uid", "0", "--gid", "0", "--cap-drop", "ALL", "--hostname", "lab"]
        argv += ["--disable-userns"] if _knows("--disable-userns") else []  # since bubblewrap 0.8.0
        become = []
    # bwrap covers /proc/sys only where that folder itself is writable, whoever owns the files in it.
    argv += ["--ro-bind", str(box.root), "/", "--proc", "/proc", "--remount-ro", "/proc"]
    argv += [] if uname is None else ["--perms", "0755", "--ro-bind-data", str(uname), "/usr/bin/uname"]
    argv += ["--dev", "/dev", "--remount-ro", "/dev"]
    argv += [*_tmpfs("/tmp"), *_tmpfs("/root"), "--tmpfs", _WORKSHOP, "--bind", str(box.folder), str(box.inside)]
    argv += ["--remount-ro", _WORKSHOP, "--chdir", str(cwd), "--clearenv"]
    for key, value in {"PATH": _PATH, "HOME": "/root", "TMPDIR": "/tmp", "LC_ALL": "C", **environment}.items():
        argv += ["--setenv", key, value]
    # That user's processes are this sandbox's alone, so that they may be counted closely.
    processes = _MOST_PROCESSES if os.geteuid() else 2 * limits.processes
    script = _ULIMITS.format(memory=limits.memory >> 10, file=limits.file >> 9, processes=processes)
    return [*argv, "--", *become, "/bin/sh", "-c", script, "sh"]


def _give(folder: Path) -> None:
    """Let root's sandboxes write in it; no link is followed."""
    with folder_tree.opened(folder) as top:
        os.fchown(top, _ALIEN, _ALIEN)
        for found in folder_tree.walk(top):
            os.chown(found.name, _ALIEN, _ALIEN, dir_fd=found.parent, follow_symlinks=False)


def _tmpfs(place: str) -> list[str]:
    # Since bubblewrap 0.7.0 a tmpfs may be given a size; before, it is half of the memory.
    return [*(("--size", str(1 << 30)) if _knows("--size") else ()), "--perms", "1777", "--tmpfs", place]


@functools.cache
def _knows(option: str) -> bool:
    with contextlib.suppress(LabError):
        return option in command.run(["bwrap", "--help"], deadline=Deadline(10)).output
    return False


def _refused(said: str) -> LabError:
    lines = [line for line in said.splitlines() if line.startswith("bwrap: ")]
    what = printable(lines[0].removeprefix("bwrap: "), 200) if lines else "it did not run"
    return LabError(f"bubblewrap cannot make a sandbox here: {what}", _remedy())


def _remedy() -> str:
    """The switch that this host's kernel forbids user namespaces with (user_namespaces(7), namespaces(7))."""
    instead = "or build in the guest: `build: guest`"
    switches = {
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
        "kernel/unprivileged_userns_clone": ("0", "1"),
        "user/max_user_namespaces": ("0", "10000"),
    }
    for switch, (bad, good) in switches.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", switch).read_text(encoding="ascii").strip() == bad:
                name = switch.replace("/", ".")
                return f"user namespaces are forbidden: sudo sysctl -w {name}={good}, {instead}"
    return f"does `bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true` run? {instead}"


class _Watch:
    """Looks at a sandbox's processes and disk until it ends, and ends it when they are too much."""

    def __init__(self, info: int, folder: Path, limits: Limits) -> None:
        self.exceeded: str | None = None
        self.heard_too_much = False
        self.failed: Exception | None = None
        """What kept it from looking: then nothing bounds the sandbox, and it ends it."""
        self._info, self._folder, self._limits = info, folder, limits
        self._over = threading.Event()
        self._run_command = b""
        self._first: int | None = None
        self._disk_before = os.statvfs(folder)
        self._threads_before = _threads()
        self._measure = Measure()
        self._thread = threading.Thread(target=self._look, daemon=True, name="sandbox")

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise LabError where the sandbox went on without anybody watching it."""
        if self.failed is not None:
            raise unexpected(self.failed, "the sandbox could not be watched")

    def _look(self) -> None:
        turn = 0
        while not self._over.wait(_EVERY):
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
        """What bwrap tells, in several pieces, as soon as it has made the namespaces."""
        if select.select([self._info], [], [], 0)[0]:
            self._run_command += os.read(self._info, 4096)
        found = _CHILD.search(self._run_command)
        return int(found[1]) if found else None

    def _excess(self, turn: int) -> str | None:
        """What it uses too much of; None where all is well, or nothing was looked at."""
        limits, first = self._limits, self._first
        if first is not None and self.heard_too_much:
            return f"{limits.output / 2**20:.0f} MiB of output"
        more = _threads() - self._threads_before
        if first is None or (turn % _THOROUGH and more <= limits.processes):
            return None
        used = self._measure.take(first)
        before, now = self._disk_before, os.statvfs(self._folder)
        taken = (before.f_bfree - now.f_bfree) * now.f_frsize
        # A file system that makes room for files as they come says 0 of 0, as btrfs does.
        files = used.files + (before.f_ffree - now.f_ffree if now.f_files else 0)
        if used.processes > limits.processes:
            return f"{limits.processes} processes"
        if used.memory > limits.memory or used.unexplained > max(limits.memory, _UNEXPLAINED):
            return f"{limits.memory / 2**30:.1f} GiB of memory"
        if taken > limits.disk:
            return f"{limits.disk / 2**30:.1f} GiB of disk"
        return f"{limits.files} files" if files > limits.files else None

    def _end(self, first: int, what: str) -> None:
        self.exceeded = what
        # The first process of a pid namespace takes all others with it (pid_namespaces(7)).
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)


_CHILD = re.compile(rb'"child-pid":\s*(\d+)\s*[,}]')


def _threads() -> int:
    """All threads of this host (proc(5), /proc/loadavg)."""
    return int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
