"""Print what commands answer: text or JSON on stdout, errors on stderr."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmlab.cli.output import progress
from kmlab.common.errors import KmlabError
from kmlab.common.events import escape_surrogates, printable

if TYPE_CHECKING:
    from kmlab.config.kernel_flavours import KernelFlavour
    from kmlab.config.lab import Lab
    from kmlab.host.hypervisor.doctor import Finding
    from kmlab.kernel.build.kernel_releases import Release
    from kmlab.kernel.crash.crash import Crash
    from kmlab.kernel.crash.paste import Unread
    from kmlab.kernel.log.records import Record
    from kmlab.provision.cache import GuestStatus, ListedImage
    from kmlab.provision.guest import GuestRecord
    from kmlab.provision.hot_plug import Plugged
    from kmlab.provision.kernels.built_kernel import BuiltKernelRecord
    from kmlab.run.documents import (
        Accelerator,
        BuiltKernelEntry,
        DeviceEntry,
        Document,
        ErrorDocument,
        FlavourEntry,
        GuestsSchema,
        GuestState,
        HostFinding,
        ImageEntry,
        KernelEntry,
        LogRecord,
    )
    from kmlab.run.result import RunResult

reporting, in_lines = progress.reporting, progress.in_lines


def document(value: Document, *, line: bool = False) -> None:
    """Print a command's JSON document; `line` prints it on one line, for commands with several documents."""
    sys.stdout.write(jsonlib.dumps(escape_surrogates(value), indent=None if line else 1, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def schema(value: Mapping[str, Any]) -> None:
    """Print a JSON Schema: the same document with and without --json."""
    sys.stdout.write(jsonlib.dumps(value, indent=1, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """Print one line of a command's answer."""
    sys.stdout.write(f"{printable(text)}\n")


def note(text: str) -> None:
    """Print one line on stderr about how a command understood what it was given."""
    sys.stderr.write(f"kmlab: {printable(text)}\n")
    sys.stderr.flush()


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print_line(line)


def error(problem: KmlabError, *, as_json: bool) -> None:
    """Print an error on stderr, with its hint, and as JSON on stdout if `as_json`."""
    if as_json:
        document(error_document(problem))
    first, *hint = error_lines(problem)
    sys.stderr.write("".join(f"{line}\n" for line in (f"kmlab: {first}", *hint)))


def error_document(problem: KmlabError) -> ErrorDocument:
    return {"schema": "kmlab.error/1", "error": {"message": problem.message, "hint": problem.hint}}


def error_lines(problem: KmlabError) -> list[str]:
    hint = [f"  hint: {_lines(problem.hint)}"] if problem.hint else []
    return [_lines(problem.message), *hint]


def interrupted() -> None:
    sys.stderr.write("\nkmlab: interrupted\n")


def flush_output() -> None:
    """Flush stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()


# --- answers -------------------------------------------------------------------------------------------------------


def verdict(result: RunResult, *, verbose: bool = False) -> None:
    """Print a run for people: what the kernel reported, the findings, and the verdict last."""
    from kmlab.report.verdict_lines import verdict_lines

    print_lines(verdict_lines(result, verbose=verbose))
    sys.stdout.flush()


def tests(result: RunResult, notes: Sequence[str]) -> None:
    """Print the results of the tests in a saved log."""
    from kmlab.report.case_lines import case_lines
    from kmlab.report.verdict_lines import finding_lines, headline

    print_lines(case_lines(result.tests))
    print_lines(finding_lines(result))
    print_lines(f"  {note}" for note in notes)
    print_line(headline(result))
    sys.stdout.flush()


def one_line(result: RunResult) -> None:
    """Print a run's verdict on stderr while other runs go on."""
    from kmlab.report.verdict_lines import headline

    sys.stderr.write(f"{printable(headline(result))}\n")
    sys.stderr.flush()


def crashes(
    found: Sequence[Crash], notes: Sequence[str], source: Path | None, unread: Unread | None, *, as_json: bool
) -> None:
    """Print the findings of a saved log; `source` is the folder with the sources."""
    if as_json:
        from kmlab.run.result import crash_to_json

        document(
            {
                "schema": "kmlab.crashes/1",
                "crashes": [crash_to_json(crash) for crash in found],
                "notes": list(notes),
                "unread": {"lines": unread.lines, "first": unread.first} if unread else None,
            }
        )
        return
    from kmlab.report.verdict_lines import crash_line, crash_lines

    for crash in found:
        print_line(crash_line(crash))
        print_lines([f"    {crash.reason}"] if crash.reason else [])
        print_lines(crash_lines(crash, source, 12))
    print_lines([f"  {note}" for note in notes])
    nothing = "nothing found in what could be read" if unread else "nothing found"
    print_line(f"{len(found)} found" if found else nothing)


def guests(lab: Lab, records: Sequence[GuestRecord], *, as_json: bool, what: GuestsSchema) -> None:
    """Print the guests that were just started."""
    if as_json:
        from kmlab.provision.guest import describe

        document({"schema": what, "lab": lab.name, "guests": [describe(r) for r in records]})
        return
    for record in records:
        print_line(f"{record.name}: up, kernel {record.release}, {record.accel}, {_way_in(record)}")


def statuses(lab: Lab, found: Sequence[GuestStatus], *, as_json: bool) -> None:
    """Print the answer of `kmlab status`."""
    from kmlab.config.lab import DEFAULTS
    from kmlab.host.hypervisor.accel import last_choice
    from kmlab.provision.guest import describe

    choice = last_choice(lab.accel)
    accel: Accelerator | None = {"name": choice.name, "why": choice.why} if choice else None
    if as_json:
        listed: list[GuestState] = []
        for each in found:
            listed.append({"name": each.name, "state": each.state, "in_use": each.in_use})
            if each.record:
                listed[-1]["record"] = describe(each.record)
        document({"schema": "kmlab.status/1", "lab": lab.name, "accel": accel, "guests": listed})
        return
    print_line(f"lab {lab.name} ({lab.path if lab.file != DEFAULTS else f'{DEFAULTS}, {lab.folder}'})")
    print_line(f"accelerator: {choice.name}: {choice.why}" if choice else "accelerator: not measured yet")
    for guest in found:
        record = guest.record
        if record is None or not guest.running:
            print_line(f"{guest.name}: stopped")
            continue
        why = f" ({record.reason})" if record.reason else ""
        print_line(f"{guest.name}: {guest.state}{why}, kernel {record.release}, {_way_in(record)}")
        print_line(f"  firmware: {record.firmware}")
        print_lines(
            f"  port {port} of 127.0.0.1: port {inside} of the guest" for inside, port in record.forwarded.items()
        )
        print_line(f"  network: {record.network}: {_REACH.get(record.network, 'unknown')}")


_REACH = {
    "none": "no connections",
    "isolated": "no connections out of the guest",
    "host": "connections wherever this host can connect, and to this host",
}


def _way_in(record: GuestRecord) -> str:
    return f"ssh on 127.0.0.1:{record.port}" if record.port is not None else "no ssh"


def devices(
    guest: str, changed: str | None, found: Sequence[Plugged], crashes: Sequence[Crash], *, as_json: bool
) -> None:
    """Print the answer of `kmlab device`."""
    from kmlab.run.result import crash_to_json

    if as_json:
        listed: list[DeviceEntry] = [
            {"name": each.name, "device": each.words, "address": each.address or None, "tty": each.tty or None}
            for each in found
        ]
        shown = [crash_to_json(crash) for crash in crashes]
        document({"schema": "kmlab.devices/1", "guest": guest, "changed": changed, "devices": listed, "crashes": shown})
        return
    for each in found:
        more = " ".join(filter(None, [each.address, each.tty]))
        print_line(f"{each.name:<14} {each.words}{f'   {more}' if more else ''}")
    for crash in crashes:
        print_line(f"{crash.kind}: {printable(crash.title, 200)}")
    if crashes:
        print_line(f"guest '{guest}' reported this after the change: see `kmlab log {guest}`")


def kernel_log(console: Path, guest: str, *, follow: bool, as_json: bool) -> None:
    """Print the kernel records in a guest's console: up to its end, or for ever with `follow`."""
    from kmlab.diagnosis.console import Follower

    follower = Follower(console)
    if as_json:
        found = [*follower.read(), *follower.close()]
        listed: list[LogRecord] = [{"time": r.time, "level": r.level, "text": r.text} for r in found]
        document({"schema": "kmlab.log/1", "guest": guest, "log": listed})
        return
    while True:
        print_lines(record_line(record) for record in follower.read())
        if not follow:
            break
        sys.stdout.flush()
        time.sleep(0.1)
    print_lines(record_line(record) for record in follower.close())


def record_line(record: Record) -> str:
    """Return a record as dmesg(1) shows it."""
    return f"[{record.time or 0:12.6f}] {record.text}"


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """Print the answer of `kmlab doctor`."""
    if as_json:
        listed: list[HostFinding] = [
            {"what": f.what, "state": f.state, "detail": f.detail, "mend": list(f.mend)} for f in found
        ]
        document({"schema": "kmlab.doctor/1", "findings": listed})
        return
    import shlex

    for finding in found:
        print_line(f"{finding.state:<7} {finding.what:<22} {finding.detail}")
        if finding.mend:
            print_line(f"{'':7} mend: {shlex.join(finding.mend)}")


def images(found: Sequence[ListedImage], *, as_json: bool) -> None:
    """Print the answer of `kmlab image list`."""
    if as_json:
        listed: list[ImageEntry] = [
            {
                "name": i.name,
                "family": i.family,
                "release": i.release,
                "architectures": list(i.architectures),
                "architecture": i.architecture,
                "cached_bytes": i.cached,
                "trust": i.trust,
                "serial": i.serial,
            }
            for i in found
        ]
        document({"schema": "kmlab.images/1", "images": listed})
        return
    for image in found:
        cached = f"{image.cached / 2**20:.0f} MiB in the cache" if image.cached else "not in the cache"
        trust = {"packages": "built from signed packages", "signature": "signed", "digest": "pinned by its digest"}
        word = trust.get(image.trust, "needs a digest")
        pinned = f", release {image.serial}" if image.serial else ""
        print_line(
            f"{image.name:<16} {image.family:<8} {','.join(_default_first(image)):<16} {word + pinned:<28} {cached}"
        )


def _default_first(image: ListedImage) -> list[str]:
    return sorted(image.architectures, key=lambda arch: arch != image.architecture)


def kernels(image: str, found: Sequence[Release], own: str, *, as_json: bool) -> None:
    """Print the answer of `kmlab image kernels`."""
    if as_json:
        listed: list[KernelEntry] = [
            {"release": r.name, "flavour": r.flavour, "version": r.version, "suite": r.suite} for r in found
        ]
        document({"schema": "kmlab.kernels/1", "image": image, "default": own, "kernels": listed})
        return
    for suite in dict.fromkeys(r.suite for r in found):
        print_line(f"{suite}:")
        for release in [r for r in found if r.suite == suite]:
            print_line(f"  {release.name:<32} {release.version}" + ("  (default)" if release.name == own else ""))


def built_kernels(
    records: Sequence[BuiltKernelRecord], flavours: Sequence[KernelFlavour] = (), *, as_json: bool
) -> None:
    """Print the answers of the commands about kernels that kmlab builds."""
    if as_json:
        kernels: list[BuiltKernelEntry] = [
            {
                "key": r.key,
                "release": r.release,
                "flavour": r.flavour,
                "image": r.image,
                "arch": r.arch,
                "source": r.source,
                "compiler": r.compiler,
                "seconds": r.seconds,
                "path": str(r.folder),
            }
            for r in records
        ]
        known: list[FlavourEntry] = [{"name": f.name, "about": f.about} for f in flavours]
        document({"schema": "kmlab.built-kernels/1", "kernels": kernels, "flavours": known})
        return
    for record in records:
        print_line(f"{record.key}  {record.release:<28} {record.source:<34} for {record.image}, {record.arch}")
    if flavours:
        print_line("flavours that kmlab can build:")
    for flavour in flavours:
        print_line(f"  {flavour.name:<10} {flavour.about}")


def pruned(removed: Sequence[str], freed: int, *, as_json: bool) -> None:
    """Print what was removed from the cache."""
    if as_json:
        document({"schema": "kmlab.prune/1", "removed": [*removed], "bytes": freed})
        return
    for name in removed:
        print_line(f"removed  {name}")
    print_line(f"{freed / 2**20:.0f} MiB freed" if removed or freed else "nothing to remove")


def verified(found: Sequence[tuple[str, str | None]], *, as_json: bool) -> None:
    """Print the answer of `kmlab image verify`."""
    if as_json:
        document({"schema": "kmlab.verify/1", "files": [{"name": n, "problem": p} for n, p in found]})
        return
    if not found:
        print_line("nothing is in the cache")
    for name, problem in found:
        print_line(f"{'ALTERED' if problem else 'ok':<8} {name}" + (f"  {problem}" if problem else ""))


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
