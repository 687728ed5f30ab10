"""What a guest that hangs or has died still tells: where its CPUs are, what its tasks wait for, its memory.

The kernel may have said nothing of it, or blamed another. Nothing here needs a program in the guest.
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
from kmlab.kernel.crash.tasks import QUESTIONS, Task, parse_cpus, parse_tasks, tasks_in
from kmlab.kernel.log.records import KernelLog, Record
from kmlab.kernel.log.ring_memory import UnknownLayout, read_ring
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.kernel.symbols.registers import find_code, parse_bytes, parse_registers, window
from kmlab.kernel.symbols.symbolizer import Kallsyms, ModuleSymbols, SymbolAt
from kmlab.provision.guest import Guest, GuestRecord
from kmlab.virt.domain import SERIAL_DEVICE, serial_tty

_LARGEST_FUNCTION, _LARGEST_OF_MODULE = 1 << 16, 1 << 12
"""Bytes; an address further behind the last symbol known is in something that was loaded later."""
_ANSWER_BEGINS = 2.0
"""Seconds until a kernel that can be asked has begun to answer; QEMU looks for a reader of the line once a second."""
_ANSWER_ENDS = 20.0
_QUIET = 0.5


@dataclass(frozen=True, slots=True)
class HangSnapshot:
    """What a look from outside found in a guest that does not answer."""

    registers: str = ""
    tasks: tuple[str, ...] = ()
    """The kernel's word on every task, as lines."""
    silent: Crash | None = None
    """What its CPUs are in, or its tasks wait in."""
    busy: Crash | None = None
    """The same, of a CPU that is in the module's code."""
    log: KernelLog | None = None
    """The kernel's ring buffer, out of the guest's memory."""


def is_there(host: Host, guest: Guest) -> bool:
    """Whether the hypervisor has the guest at all; LabError where the host's disk is full."""
    record, status = guest.record, ""
    with contextlib.suppress(LabError), host.hypervisor(record.uri, guest.files.libvirt, Deadline(10)) as hv:
        status = "shutdown"
        # A QEMU that has a guest answers whatever its guest does.
        with contextlib.suppress(LabError):
            status = hv.monitor(record.domain, "info status")
    if "shutdown" in status or "io-error" in status:
        # QEMU stops a guest whose disk finds no room; libvirt ends one whose state it cannot write.
        paths.require_space(guest.files.root, paths.MIN_FREE_SPACE, f"the disk of guest '{record.name}'")
    return "shutdown" not in status


def look_inside(
    host: Host,
    guest: Guest,
    witness: ConsoleMonitor,
    images: Mapping[str, bytes],
    folder: PurePosixPath,
    own: frozenset[str],
    step: str,
) -> HangSnapshot:
    """Where the CPUs are and what the tasks wait for, before the guest is stopped.

    The kernel may not have said it, or not rightly. `images` are the modules that were built, `own` their names.
    """
    registers, silent, tasks = "", None, list[str]()
    log = read_ring_memory(host, guest)  # before the questions, whose answers the kernel logs too
    # A module that lies has no place of its own.
    with contextlib.suppress(LabError, MalformedModule):
        registers, frames = place_of_cpus(host, guest.record, guest.files, images, folder)
        silent = silent_hang(frames, step)
    with contextlib.suppress(LabError):
        tasks = ask_tasks(host, guest, witness)
    busy = silent if silent and silent.module in own else busy_hang(tasks, images, folder, own, step)
    silent = busy or waiting_hang(parse_tasks(tasks), images, folder, own, step) or silent
    return HangSnapshot(registers, tuple(tasks), silent, busy, log)


def place_of_cpus(
    host: Host, record: GuestRecord, files: paths.GuestFiles, images: Mapping[str, bytes], folder: PurePosixPath
) -> tuple[str, list[Frame]]:
    """QEMU's word on every CPU of a guest that does not answer, and where each that is not idle is, as frames."""
    with host.hypervisor(record.uri, files.libvirt, Deadline(10)) as hv:
        text = hv.monitor(record.domain, "info registers -a")
        states = [state for state in parse_registers(text) if not state.halted]
        asked = [window(state.address) for state in states]
        codes = [parse_bytes(hv.monitor(record.domain, f"x /{size}xb 0x{first:x}")) for first, size in asked]
    table = paths.checkpoints() / record.checkpoint / "kallsyms"
    kallsyms = Kallsyms(table.read_text("utf-8", "replace")) if table.exists() else None
    frames: list[Frame] = []
    for state, code in zip(states, codes, strict=True):
        known = kallsyms.resolve(state.address) if kallsyms else None
        known = known if known and _is_near(known) else None
        # Functions of the kernel's own begin and end with the bytes that a module's do.
        found = None if known and not known.module else find_code(images, state.address, code)
        if found:
            path, section, offset = found
            symbols = ModuleSymbols(images[path], path, folder)
            name = symbols.symbol_at(section, offset)
            module = PurePosixPath(path).stem.replace("-", "_")
            for place in symbols.locate_in(section, offset, name.function if name else "?"):
                frame = Frame(place.function, None, None, module, reliable=True, exact=True)
                if name:
                    frame = frame._replace(offset=name.offset, size=name.size)
                frames.append(placed(frame, place))
        elif known:
            frames.append(Frame(known.function, known.offset, known.size, known.module, reliable=True, exact=True))
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


def ask_tasks(host: Host, guest: Guest, witness: ConsoleMonitor) -> list[str]:
    """The kernel's own word on every task and CPU, as lines; empty where it cannot be asked any more.

    Asked by a break on the serial port, which takes no more than an interrupt, else through the shell.
    """
    record = guest.record
    with (
        witness.aside() as said,
        host.hypervisor(record.uri, guest.files.libvirt, Deadline(10)) as hv,
        serialport.opened(serial_tty(hv.xml(record.domain)) or "no pty") as port,
    ):
        for key, beginning in QUESTIONS.items():
            hv.monitor(record.domain, f"chardev-send-break {SERIAL_DEVICE}")
            port.type(key.encode())
            if not _answered(witness, port, said, beginning):
                guest.run(f"echo {key} > /proc/sysrq-trigger", Deadline(_ANSWER_BEGINS))
                if not _answered(witness, port, said, beginning):
                    break
    return [record.text for record in said]


def _answered(witness: ConsoleMonitor, port: serialport.SerialPort, said: Sequence[Record], beginning: str) -> bool:
    """Wait for an answer and for its end; whether there was one."""
    begins, ends = Deadline(_ANSWER_BEGINS), Deadline(_ANSWER_ENDS)
    while not any(record.text.startswith(beginning) for record in said):
        if begins.passed:
            return False
        _let_pass(port)
    while witness.quiet < _QUIET and not ends.passed:
        _let_pass(port)
    return True


def _let_pass(port: serialport.SerialPort) -> None:
    """What the port says is in the console's file: it is only read so that QEMU does not wait for a reader."""
    if port.read(Deadline(0.05)) is None:
        time.sleep(0.05)


def _is_near(known: SymbolAt) -> bool:
    return known.offset < (_LARGEST_OF_MODULE if known.module else _LARGEST_FUNCTION)


def silent_hang(frames: Sequence[Frame], step: str) -> Crash:
    """The finding for a guest whose kernel said nothing of the loop that it is in."""
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


def waiting_hang(
    tasks: Iterable[Task], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], step: str
) -> Crash | None:
    """The finding for a step that waits in one of these modules without any CPU being busy; None where no task does."""
    for task in tasks_in(list(tasks), own):
        found = _hang_of(task.frames, images, folder, own, step)
        if found.module in own:
            return dataclasses.replace(found, task=task.name, pid=task.pid)
    return None


def busy_hang(
    answer: Sequence[str], images: Mapping[str, bytes], folder: PurePosixPath, own: frozenset[str], step: str
) -> Crash | None:
    """The finding for a CPU that is in one of these modules, by the kernel's own answer; None where none is."""
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
    """The findings of a run, the kernel's and those of a look from outside, without telling one bug twice."""
    if any(c.deadly for c in crashes):
        return crashes  # what waits, waits for a task that was killed
    if busy and all(c.class_ == "hung-task" for c in crashes if c.module in own):
        # Who waits for the module may have been told; it is a loop of the module's that it waits for.
        return [busy, *(c for c in crashes if c.module not in own)]
    if silent and not any(c.module in own for c in crashes):
        return [silent, *crashes] if silent.module else crashes or [silent]
    return crashes


def dump_memory(host: Host, record: GuestRecord, files: paths.GuestFiles, target: Path, size: int, limit: int) -> bool:
    """The guest's `size` bytes of memory as a file that drgn and crash open; False if it is beyond `limit` bytes."""
    # Its pages are compressed; until they lie where they belong there are two files.
    paths.require_space(files.root, size, "a memory dump")
    flat = files.root / "memory.flat"
    try:
        with host.hypervisor(record.uri, files.libvirt, Deadline(10)) as hv:
            hv.dump(record.domain, flat)
        with contextlib.ExitStack() as undo:
            undo.callback(target.unlink, missing_ok=True)
            kept = vmcore.unflatten(flat, target, limit, record.release, record.arch)
            if kept:
                undo.pop_all()
            return kept
    except OSError as error:
        raise LabError(f"the memory dump could not be kept: {error.strerror}") from error
    finally:
        flat.unlink(missing_ok=True)
