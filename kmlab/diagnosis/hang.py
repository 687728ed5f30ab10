"""Examine a guest that hangs or has died: where its CPUs are, what its tasks wait for, and its memory.

The kernel may have reported nothing, or blamed other code. Nothing here needs a program in the guest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.diagnosis.console import ConsoleMonitor
from kmlab.host import Host
from kmlab.host.channel import serialport
from kmlab.host.disk import vmcore
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.source_lines import innermost, located, placed
from kmlab.kernel.crash.stack_trace import Frame, blame
from kmlab.kernel.hang.tasks import (
    BLOCKED,
    QUESTIONS,
    Task,
    find_deadlock,
    lasting_deadlock,
    parse_cpus,
    parse_tasks,
    tasks_in,
)
from kmlab.kernel.log.records import KernelLog, Record, parse_log
from kmlab.kernel.log.ring_memory import UnknownLayout, read_ring
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.kernel.symbols.registers import find_code, parse_bytes, parse_registers, window
from kmlab.kernel.symbols.symbolizer import Kallsyms, ModuleSymbols, SymbolAt
from kmlab.provision.guest import Guest, GuestRecord
from kmlab.virt.domain import SERIAL_DEVICE, serial_tty

_LARGEST_FUNCTION, _LARGEST_OF_MODULE = 1 << 16, 1 << 12
"""Bytes; an address further behind the last symbol known is in something that was loaded later."""
_ANSWER_BEGINS = 2.0
"""Seconds until a responsive kernel has begun to answer; QEMU looks for a reader of the line once a second."""
_ANSWER_ENDS = 20.0
_QUIET = 0.5
_FOR_GOOD = 2.0
"""Seconds after which a task that still waits at the same place waits for good."""


@dataclass(frozen=True, slots=True)
class HangSnapshot:
    """The state of a guest that does not answer, read from outside."""

    registers: str = ""
    tasks: tuple[str, ...] = ()
    """The kernel's list of tasks, as lines."""
    silent: Crash | None = None
    """The finding for the code that its CPUs run, or that its tasks wait in."""
    busy: Crash | None = None
    """The finding for a CPU that runs the module's code."""
    log: KernelLog | None = None
    """The kernel's ring buffer, read from the guest's memory."""


def guest_exists(host: Host, guest: Guest) -> bool:
    """Return whether the hypervisor still has the guest. Raise LabError if the host's disk is full."""
    record, status = guest.record, ""
    with contextlib.suppress(LabError), host.hypervisor(record.uri, guest.files.libvirt, Deadline(10)) as hv:
        status = "shutdown"
        # A running QEMU answers whatever its guest does.
        with contextlib.suppress(LabError):
            status = hv.monitor(record.domain, "info status")
    if "shutdown" in status or "io-error" in status:
        # QEMU pauses a guest when the host's disk is full; libvirt ends a guest whose state it cannot write.
        paths.require_space(guest.files.root, paths.MIN_FREE_SPACE, f"the disk of guest '{record.name}'")
    return "shutdown" not in status


def take_snapshot(
    host: Host,
    guest: Guest,
    console: ConsoleMonitor,
    images: Mapping[str, bytes],
    folder: PurePosixPath,
    own: frozenset[str],
    step: str,
) -> HangSnapshot:
    """Find where the CPUs are and what the tasks wait for, before the guest is stopped.

    The kernel's own report may be missing or wrong. `images` are the modules that were built, `own` their names.
    """
    registers, silent, tasks = "", None, list[str]()
    log = read_ring_memory(host, guest)  # before the questions, whose answers the kernel logs too
    # A malformed module has no lines.
    with contextlib.suppress(LabError, MalformedModule):
        registers, frames = read_cpus(host, guest.record, guest.files, images, folder)
        silent = silent_hang(frames, step)
    with contextlib.suppress(LabError):
        tasks = ask_tasks(host, guest, console)
    busy = silent if silent and silent.module in own else busy_hang(tasks, images, folder, own, step)
    waiting = deadlock(tasks, images, folder, own) or waiting_hang(parse_tasks(tasks), images, folder, own, step)
    silent = busy or waiting or silent
    return HangSnapshot(registers, tuple(tasks), silent, busy, log)


def read_cpus(
    host: Host, record: GuestRecord, files: paths.GuestFiles, images: Mapping[str, bytes], folder: PurePosixPath
) -> tuple[str, list[Frame]]:
    """Return QEMU's registers of every CPU, and the code that each busy CPU executes, as frames."""
    with host.hypervisor(record.uri, files.libvirt, Deadline(10)) as hv:
        text = hv.monitor(record.domain, "info registers -a")
        states = [state for state in parse_registers(text) if not state.halted]
        windows = [window(state.address) for state in states]
        codes = [parse_bytes(hv.monitor(record.domain, f"x /{size}xb 0x{first:x}")) for first, size in windows]
    table = paths.checkpoints() / record.checkpoint / "kallsyms"
    kallsyms = Kallsyms(table.read_text("utf-8", "replace")) if table.exists() else None
    frames: list[Frame] = []
    for state, code in zip(states, codes, strict=True):
        symbol = kallsyms.resolve(state.address) if kallsyms else None
        symbol = symbol if symbol and _is_near(symbol) else None
        # The kernel's functions begin and end with the same bytes as a module's.
        match = None if symbol and not symbol.module else find_code(images, state.address, code)
        if match:
            path, section, offset = match
            symbols = ModuleSymbols(images[path], path, folder)
            name = symbols.symbol_at(section, offset)
            module = PurePosixPath(path).stem.replace("-", "_")
            for place in symbols.locate_in(section, offset, name.function if name else "?"):
                frame = Frame(place.function, None, None, module, reliable=True, exact=True)
                if name:
                    frame = frame._replace(offset=name.offset, size=name.size)
                frames.append(placed(frame, place))
        elif symbol:
            frames.append(Frame(symbol.function, symbol.offset, symbol.size, symbol.module, reliable=True, exact=True))
    return text, frames


def read_ring_memory(host: Host, guest: Guest) -> KernelLog | None:
    """Read the kernel's ring buffer out of the memory of a guest that does not answer; None if it is not there."""
    record, piece = guest.record, guest.files.root / "memory.piece"
    table = paths.checkpoints() / record.checkpoint / "kallsyms"
    try:
        kallsyms = Kallsyms(table.read_text("utf-8", "replace"))
        symbols = {name: at for name in ("vmcoreinfo_data", "vmcoreinfo_size") for at in kallsyms.find(name)}
        with host.hypervisor(record.uri, guest.files.libvirt, Deadline(10)) as hv:

            def read(address: int, size: int) -> bytes:
                said = hv.monitor(record.domain, f'memsave 0x{address:x} {size} "{piece}"')
                content = piece.read_bytes()
                if said.strip() or len(content) != size:
                    raise UnknownLayout(f"QEMU could not read {size} bytes at 0x{address:x}")
                return content

            return read_ring(read, symbols)
    except (UnknownLayout, LabError, OSError):
        return None
    finally:
        piece.unlink(missing_ok=True)


def ask_tasks(host: Host, guest: Guest, console: ConsoleMonitor) -> list[str]:
    """Ask the kernel for every task and CPU; return its lines, none if it does not answer any more.

    Ask with a break on the serial port, which needs only an interrupt, else through the shell.
    """
    record = guest.record
    with (
        console.aside() as answer,
        host.hypervisor(record.uri, guest.files.libvirt, Deadline(10)) as hv,
        serialport.opened(serial_tty(hv.xml(record.domain)) or "no pty") as port,
    ):
        for key, beginning in QUESTIONS.items():
            hv.monitor(record.domain, f"chardev-send-break {SERIAL_DEVICE}")
            port.type(key.encode())
            if not _wait_for_answer(console, port, answer, beginning):
                guest.run(f"echo {key} > /proc/sysrq-trigger", Deadline(_ANSWER_BEGINS))
                if not _wait_for_answer(console, port, answer, beginning):
                    break
    return [record.text for record in answer]


def find_blocked(
    guest: Guest, images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], deadline: Deadline
) -> HangSnapshot | None:
    """Find tasks of a living guest that wait for each other in these modules for good; None if there are none."""
    before = _ask_blocked(guest, deadline)
    if find_deadlock(parse_tasks(before), own) is None:
        return None
    time.sleep(deadline.within(_FOR_GOOD).left)
    after = _ask_blocked(guest, deadline)
    crash = lasting_deadlock(parse_tasks(before), parse_tasks(after), own)
    return HangSnapshot(tasks=tuple(after), silent=located(crash, images, folder)) if crash else None


def _ask_blocked(guest: Guest, deadline: Deadline) -> list[str]:
    """Ask a living guest's kernel for the tasks that no signal reaches; return its lines."""
    key, beginning = BLOCKED
    guest.run(f"echo {key} > /proc/sysrq-trigger", deadline)
    texts = [record.text for record in parse_log(guest.shell.kernel_log(deadline).out).records if record.from_kernel]
    asked = max((number for number, text in enumerate(texts) if text.startswith(beginning)), default=None)
    return texts[asked:] if asked is not None else []


def _wait_for_answer(
    console: ConsoleMonitor, port: serialport.SerialPort, answer: Sequence[Record], beginning: str
) -> bool:
    """Wait for an answer and for its end; return whether one came."""
    begins, ends = Deadline(_ANSWER_BEGINS), Deadline(_ANSWER_ENDS)
    while not any(record.text.startswith(beginning) for record in answer):
        if begins.passed:
            return False
        _drain(port)
    while console.quiet < _QUIET and not ends.passed:
        _drain(port)
    return True


def _drain(port: serialport.SerialPort) -> None:
    """Read and drop the port's output, which is also in the console file, so that QEMU never waits for a reader."""
    if port.read(Deadline(0.05)) is None:
        time.sleep(0.05)


def _is_near(symbol: SymbolAt) -> bool:
    return symbol.offset < (_LARGEST_OF_MODULE if symbol.module else _LARGEST_FUNCTION)


def silent_hang(frames: Sequence[Frame], step: str) -> Crash:
    """Return the finding for a guest whose kernel did not report the loop that it is in."""
    own = [f for f in frames if f.module]
    at = next((i for i, f in enumerate(own) if not f.inlined), None)
    mine = own[at] if at is not None else None
    place = innermost(own[: at + 1]) if at is not None else None
    first = place or mine or next(iter(frames), None)
    where = f" in {first.name}" if first else ""
    return Crash(
        kind="hang",
        class_="silent",
        title=f"hang{where}: the {step} did not end",
        function=first.name if first else None,
        module=mine.module if mine else None,
        file=place.file if place else None,
        line=place.line if place else None,
        task=None,
        pid=None,
        cpu=None,
        frames=tuple(frames),
        sections=(),
        text="",
        fatal=False,
        truncated=False,
        fingerprint=paths.digest_of("silent", mine.module if mine else None, first.name if first else None),
        time=None,
    )


def deadlock(
    answer: Sequence[str], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str]
) -> Crash | None:
    """Return the finding for tasks that wait for each other in these modules, with both places; None if none do."""
    crash = find_deadlock(parse_tasks(answer), own)
    return located(crash, images, folder) if crash else None


def waiting_hang(
    tasks: Iterable[Task], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], step: str
) -> Crash | None:
    """Return the finding for a step that waits in one of these modules while no CPU is busy; None if no task does."""
    for task in tasks_in(list(tasks), own):
        found = _hang_of(task.frames, images, folder, own, step)
        if found.module in own:
            return dataclasses.replace(found, task=task.name, pid=task.pid)
    return None


def busy_hang(
    answer: Sequence[str], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], step: str
) -> Crash | None:
    """Return the finding for a CPU that is in one of these modules, by the kernel's own answer; None if none is."""
    found = (_hang_of(stack, images, folder, own, step) for stack in parse_cpus(answer))
    return next((crash for crash in found if crash.module in own), None)


def _hang_of(
    frames: tuple[Frame, ...], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], step: str
) -> Crash:
    guilty = blame(frames, (), own, hang=True)
    crash = dataclasses.replace(silent_hang([guilty] if guilty else [], step), frames=frames)
    return located(crash, images, folder)


def merge_hang_findings(
    crashes: list[Crash], busy: Crash | None, silent: Crash | None, own: frozenset[str]
) -> list[Crash]:
    """Merge the kernel's findings with those read from outside, so that no bug is reported twice."""
    if any(c.deadly for c in crashes):
        return crashes  # tasks that wait, wait for a task that was killed
    if busy and all(c.class_ == "hung-task" for c in crashes if c.module in own):
        # The kernel may have reported the task that waits for the module; the cause is the module's loop.
        return [busy, *(c for c in crashes if c.module not in own)]
    if silent and silent.class_ == "deadlock" and all(c.class_ == "hung-task" for c in crashes if c.module in own):
        # The kernel reports each task that waits; who waits for whom is one finding.
        return [silent, *(c for c in crashes if c.module not in own)]
    if silent and not any(c.module in own for c in crashes):
        return [silent, *crashes] if silent.module else crashes or [silent]
    return crashes


def dump_memory(host: Host, record: GuestRecord, files: paths.GuestFiles, target: Path, size: int, limit: int) -> bool:
    """Write the guest's memory as a file that drgn and crash open; return False if it exceeds `limit` bytes."""
    # The dump's pages are compressed; until they are unpacked there are two files.
    paths.require_space(files.root, size, "a memory dump")
    flat = files.root / "memory.flat"
    try:
        with host.hypervisor(record.uri, files.libvirt, Deadline(10)) as hv:
            hv.dump(record.domain, flat)
        with contextlib.ExitStack() as undo:
            undo.callback(target.unlink, missing_ok=True)
            complete = vmcore.unflatten(flat, target, limit, record.release, record.arch)
            if complete:
                undo.pop_all()
            return complete
    except OSError as error:
        raise LabError(f"the memory dump could not be kept: {error.strerror}") from error
    finally:
        flat.unlink(missing_ok=True)
