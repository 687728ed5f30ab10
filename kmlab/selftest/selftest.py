"""Run a self-test: start guests, see three modules judged, and see Secure Boot refuse one."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from kmlab import __version__
from kmlab.common import paths
from kmlab.common.errors import KmlabError
from kmlab.common.events import Deadline, EventSink, printable
from kmlab.config.lab import Lab, load_lab
from kmlab.config.run_options import NO_KEY
from kmlab.host import Host
from kmlab.host.hypervisor.doctor import Finding
from kmlab.provision import lifecycle
from kmlab.provision.plan.plan import Plan, make_plan
from kmlab.run import run
from kmlab.run.documents import SelftestDocument
from kmlab.run.result import RunResult
from kmlab.selftest.selftest_modules import HELLO, OOPS, OOPS_LINE, PANIC, SECURE, guest_name, lab_files


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    what: str
    ok: bool
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class Selftest:
    """What was seen on this host."""

    host: dict[str, str]
    findings: Sequence[Finding]
    checks: Sequence[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def selftest(
    host: Host, images: Sequence[str], accel: str, folder: Path, findings: Sequence[Finding], events: EventSink
) -> Selftest:
    """Try these images in a lab in `folder`, which is removed from kmlab's state afterwards."""
    for name, text in lab_files(images, accel).items():
        paths.write_text(folder / name, text)
    lab = load_lab(folder / "lab.yaml")
    checks: list[Check] = []
    facts = _host_facts(host, lab, guest_name(images[0]))
    try:
        for image in images:
            checks += _guest_checks(host, lab, guest_name(image), events)
        checks += _secure_boot_checks(host, lab, events)
    finally:
        lifecycle.destroy_lab(host, lab, [], all_state=False, report=events)
    return Selftest(facts, findings, checks)


def _guest_checks(host: Host, lab: Lab, guest: str, events: EventSink) -> Iterator[Check]:
    start = _timed(f"{guest}: start", lambda: _start(host, lab, guest, events))
    yield start
    if not start.ok:
        return
    yield _timed(f"{guest}: hello passes", lambda: _verdict(_run(host, lab, guest, HELLO, events)))
    yield _timed(f"{guest}: oops has its line", lambda: _crash(_run(host, lab, guest, OOPS, events)))
    yield _timed(f"{guest}: panic is seen", lambda: _verdict(_run(host, lab, guest, PANIC, events)))
    yield _timed(f"{guest}: hello passes after the restore", lambda: _verdict(_run(host, lab, guest, HELLO, events)))


def _secure_boot_checks(host: Host, lab: Lab, events: EventSink) -> Iterator[Check]:
    start = _timed("Secure Boot: start", lambda: _start(host, lab, SECURE, events))
    yield start
    if not start.ok:
        return
    yield _timed("Secure Boot: signed module loads", lambda: _verdict(_run(host, lab, SECURE, HELLO, events)))
    yield _timed("Secure Boot: unsigned is refused", lambda: _refusal(_run(host, lab, SECURE, HELLO, events, NO_KEY)))


def _timed(what: str, attempt: Callable[[], tuple[bool, str]]) -> Check:
    began = time.monotonic()
    try:
        ok, detail = attempt()
    except KmlabError as error:
        ok, detail = False, f"{error.message} (hint: {error.hint})" if error.hint else error.message
    return Check(what, ok, time.monotonic() - began, detail)


def _start(host: Host, lab: Lab, guest: str, events: EventSink) -> tuple[bool, str]:
    with lifecycle.guest_session(host, lab, lab.guest(guest), events) as session:
        record = session.record
        return True, f"kernel {record.release}, {record.accel}; {record.firmware}"


def _run(host: Host, lab: Lab, guest: str, module: str, events: EventSink, sign: str | None = None) -> RunResult:
    options = run.Options() if sign is None else run.Options(sign=sign)
    return run.run(host, lab, lab.guest(guest), lab.modules[module], options, events)


def _verdict(result: RunResult) -> tuple[bool, str]:
    return result.ok, "; ".join(filter(None, (result.outcome, result.title, result.reason, *result.unmet)))


def _crash(result: RunResult) -> tuple[bool, str]:
    crash = result.crashes[0] if result.crashes else None
    place = f"{crash.file}:{crash.line}" if crash else "no crash was seen"
    ok, detail = _verdict(result)
    return ok and crash is not None and crash.line == OOPS_LINE, f"{detail}; {place}"


def _refusal(result: RunResult) -> tuple[bool, str]:
    return (result.outcome, result.failure) == ("load-failed", "signature"), _verdict(result)[1]


def _host_facts(host: Host, lab: Lab, guest: str) -> dict[str, str]:
    facts = {
        "time": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "kmlab": __version__,
        "system": _os_name(),
        "kernel": f"{platform.release()} ({platform.machine()})",
        "cpu": f"{_cpu_name()}, {len(os.sched_getaffinity(0))} usable",
        "python": platform.python_version(),
        "libvirt-python": metadata.version("libvirt-python"),
    }
    try:
        plan: Plan = make_plan(host, lab, lab.guest(guest))
        facts |= {
            "qemu": plan.qemu,
            "libvirt": _libvirt_version(host, plan),
            "firmware": str(plan.firmware.code),
            "accelerator": f"{plan.acceleration.name}: {plan.acceleration.why}",
        }
    except KmlabError as error:
        facts["error"] = error.message
    return {key: printable(value, 200) for key, value in facts.items()}


def _libvirt_version(host: Host, plan: Plan) -> str:
    root = paths.cache_home() / "work" / f"selftest.{os.getpid()}"
    try:
        with host.hypervisor(plan.lab.libvirt, root, Deadline(30)) as hv:
            number = hv.version()
    finally:
        paths.remove_tree(root)
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _os_name() -> str:
    text = _read("/etc/os-release")
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return name[1] if name else "unknown"


def _cpu_name() -> str:
    text = _read("/proc/cpuinfo")
    name = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def page(tested: Selftest) -> str:
    """Return one page of text for an issue, without personal data."""
    lines = ["kmlab selftest", ""]
    lines += [f"{key:<15} {value}" for key, value in tested.host.items()]
    lines += ["", "doctor:"]
    findings = [f for f in tested.findings if f.state != "fine"]
    lines += [f"  {f.state:<7} {f.what}: {f.detail}" for f in findings] or ["  everything is fine"]
    lines += ["", "tried:"]
    lines += [f"  {'ok' if c.ok else 'FAILED':<7} {c.seconds:>7.1f} s  {c.what}: {c.detail}" for c in tested.checks]
    good = sum(check.ok for check in tested.checks)
    lines += ["", f"{good} of {len(tested.checks)} as expected"]
    return anonymous("\n".join(lines) + "\n")


def document(tested: Selftest) -> SelftestDocument:
    """Return the same as a document."""
    return {
        "schema": "kmlab.selftest/1",
        "ok": tested.ok,
        "host": {key: anonymous(value) for key, value in tested.host.items()},
        "findings": [
            {"what": f.what, "state": f.state, "detail": anonymous(f.detail), "mend": []} for f in tested.findings
        ],
        "checks": [
            {"what": c.what, "ok": c.ok, "seconds": round(c.seconds, 3), "detail": anonymous(c.detail)}
            for c in tested.checks
        ],
    }


def anonymous(text: str) -> str:
    """Return a text without the names of this user and this host, and without paths of the home folder."""
    home = Path.home()
    words = {str(home): "~", home.name: "USER", os.environ.get("LOGNAME", ""): "USER", platform.node(): "HOST"}
    for word, replacement in words.items():
        if len(word) > 1 and word not in ("root", "localhost"):
            text = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", replacement, text)
    return text
