"""The story of one run: a module through a guest, from its folder to a verdict.

The only place where a guest's LabError becomes the outcome `error`, so that other guests go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kmlab import collect, module, provision, result, store
from kmlab.build import build
from kmlab.errors import ConfigError, GuestUnreachable, LabError
from kmlab.events import Deadline, Report, Stage, printable
from kmlab.guest import Guest
from kmlab.host import Host
from kmlab.kernel.ladder import ladder
from kmlab.kernel.loading import explain_load_failure, explain_unload_failure, find_ignored_params
from kmlab.kernel.modinfo import ModInfo, format_params
from kmlab.kernel.oops import Crash, outcome_of
from kmlab.kernel.taint import taint_mask
from kmlab.lab import GuestSpec, Lab, Module, Param
from kmlab.module import Around, Built, Step, Told
from kmlab.result import RunResult
from kmlab.yamltypes import matches

_BUILD_PATIENCE = 300.0
_EXERCISE_PATIENCE = 300.0
"""Seconds for a person's own program; a load or an unload has the ladder's last rung."""
_STATE_PATIENCE = 10.0
_LINGER = 2.5
"""Seconds after the unload in which something that the module left behind may still go off."""
_DEFERRING = re.compile(
    r"(timer|hrtimer|work|tasklet|kthread|wake_up_process|request_.*irq|register|notifier|call_rcu|kprobe|proc_|sysfs|debugfs|"
    r"misc_|cdev|class_|device_|netdev|irq_work|smp_call|completion|swait)"
)
"""Kernel functions through which code of a module can run after its unload has returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person asked of this run beyond lab.yaml."""

    fresh: bool = False
    keep: bool = False
    params: Mapping[str, Param] = field(default_factory=dict)
    exercise: str | None = None
    timeout: float | None = None
    steps: tuple[str, ...] = ("build", "load", "exercise", "unload")
    """Which of them; syncing comes before all."""


def modules_under(lab: Lab, folders: Sequence[Path]) -> list[Module]:
    """The lab's modules, or those under the given folders: entries of lab.yaml, and folders with a Makefile."""
    if not folders:
        return list(lab.modules.values())
    found: list[Module] = []
    for folder in folders:
        top = folder.resolve()
        listed = [m for m in lab.modules.values() if lab.locate(m.source).resolve().is_relative_to(top)]
        if not listed:
            sources = [p.parent for name in ("Kbuild", "Makefile") for p in sorted(top.rglob(name))]
            listed = [lab.module_for(p) for p in dict.fromkeys(sources) if not any(q in sources for q in p.parents)]
        if not listed:
            raise ConfigError(f"{printable(str(folder))}: no modules under this folder")
        found += listed
    return list({module.name: module for module in found}.values())


def run(host: Host, lab: Lab, spec: GuestSpec, wanted: Module, options: Options, report: Report) -> RunResult:
    """One module through one guest; never raises for what the module, the guest or the lab does, but for bad input."""
    began = time.monotonic()
    files = provision.lab_files(lab)
    collect.keep_latest(files.runs, lab.keep_runs - 1, lab.keep_runs_size)
    folder = collect.new_run_folder(files.runs, wanted.name, spec.name)
    draft = RunResult(
        module=wanted.name,
        source=_shown_source(lab, wanted),
        guest=spec.name,
        expect=wanted.expect,
        directory=folder,
    )
    try:
        kept = "load" not in options.steps
        with provision.entered(host, lab, spec, report, fresh=options.fresh, kept=kept) as guest:
            draft = _Run(host, lab, guest, wanted, options, report, began).through(draft)
            if not draft.guest_survived:
                provision.stop(host, lab, spec.name)
    except ConfigError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    except LabError as error:
        reason = error.message + (f" (hint: {error.hint})" if error.hint else "")
        draft = dataclasses.replace(draft, outcome="error", title=error.message, reason=reason, guest_survived=False)
    draft = dataclasses.replace(draft, seconds=time.monotonic() - began)
    store.write_json(folder / "result.json", result.document([draft]))
    return draft


class _Run:
    """The state of one run while it goes through its steps."""

    def __init__(
        self, host: Host, lab: Lab, guest: Guest, wanted: Module, options: Options, report: Report, began: float
    ) -> None:
        self.host = host
        self.lab, self.guest, self.wanted, self.options, self.report = lab, guest, wanted, options, report
        self.began = began
        self.source = lab.locate(wanted.source)
        self.folder = module.workshop(wanted.name)
        self.steps: list[Step] = []
        self.outcomes: list[str] = []
        self.reason: str | None = None
        self.built = Built(False, "", "")
        self.loaded: list[tuple[str, ModInfo]] = []
        self.alive = True
        self.taint: tuple[int, int] = (0, 0)
        self.witness = collect.Witness(guest.files.console)
        timeout = options.timeout or wanted.timeout
        self.step_patience = timeout or float(ladder(guest.record.accel).silence)
        self.exercise_patience = timeout or _EXERCISE_PATIENCE * self.patience
        self.silent: list[Crash] = []
        self.allowed: list[Crash] = []
        self.build_patience = max(timeout or 0, _BUILD_PATIENCE * guest.slowness)

    @property
    def patience(self) -> float:
        return 2.0 if self.guest.record.accel == "tcg" else 1.0

    def through(self, draft: RunResult) -> RunResult:
        guest = self.guest
        self.build_first()
        taint, modules = module.read_state(guest, self.patient(_STATE_PATIENCE))
        self.taint = (taint, taint)
        before = modules
        guest.mark("busy")
        with self.witness:
            if self.built.ok:
                self.load_use_unload()
            if self.alive and not self.witness.panicked:
                self.settle()
            found = self.witness.finish(frozenset(info.name for _, info in self.built.modules))
        crashes = [collect.located(c, self.built.images, self.folder) for c in found]
        mine = {info.name for _, info in self.built.modules}
        if self.silent and not any(c.module in mine for c in crashes):
            crashes = [*self.silent, *crashes] if self.silent[0].module else crashes or self.silent
        self.allowed = [c for c in crashes if self._allowed(c)]
        crashes = [c for c in crashes if c not in self.allowed]
        if self.witness.panicked:
            self.alive = False
        return self.judged(draft, crashes, before)

    # --- the steps -------------------------------------------------------------------------------------------------

    def build_first(self) -> None:
        """Sync and build: nothing of the module's runs yet."""
        toolchain = provision.toolchain_for(self.lab.build, self.guest.record, self.report)
        deadline = Deadline(self.build_patience)
        with self.step("sync") as step:
            sent, removed = module.sync(self.guest, self.wanted.name, self.source, deadline)
            step.detail = f"{sent} sent, {removed} removed" if sent or removed else "nothing changed"
        with self.step("build") as step:
            self.built = build(
                self.guest, self.wanted.name, self.source, deadline, lambda line: step.progress(detail=line), toolchain
            )
            step.detail = ", ".join(path for path, _ in self.built.modules) or "no module"
            if not self.built.ok:
                step.outcome = "failed"
                self.outcomes.append("build-failed")
                self.reason = self.built.reason

    def load_use_unload(self) -> None:
        wanted = self.options.steps
        if "load" not in wanted:
            self.loaded = list(self.built.modules) if "unload" in wanted else []
            for path, info in reversed(self.loaded):
                if not self.unload(path, info):
                    break
            return
        for number, (path, info) in enumerate(self.built.modules):
            if not self.load(path, info, self.built.outside if number == 0 else ()):
                break
        else:
            exercise = self.options.exercise or self.wanted.exercise
            if exercise and self.usable:
                self.exercise(exercise)
        if not (self.options.keep or self.wanted.keep):
            for path, info in reversed(self.loaded):
                if not self.usable or not self.unload(path, info):
                    break

    def load(self, path: str, info: ModInfo, outside: Sequence[str]) -> bool:
        position = self.witness.position()
        with self.step("load") as step:
            step.detail = info.name
            asked = {**self.wanted.params, **self.options.params}
            last = path == self.built.modules[-1][0]
            mine = {n: v for n, v in asked.items() if n in {p.name for p in info.params}}
            params = format_params(mine if not last else asked if len(self.built.modules) == 1 else mine)
            around = self.around()
            told = module.load(self.guest, self.folder, path, info.name, params, around, outside)
            if not self.ended(step, told, around):
                return False
            said = [r.text for r in self.witness.since(position)]
            failure = explain_load_failure(
                told.answer.error_text, told.answer.code, said, info.name, self.guest.record.release, info
            )
            if told.answer.ok:
                self.loaded.append((path, info))
                ignored = find_ignored_params(said, info.name)
                if ignored and not failure:
                    self.reason = f"{info.name} has no parameter {', '.join(ignored)}: it was ignored"
            if failure:
                self.reason = failure.reason
                if not told.answer.ok:
                    step.outcome = "failed"
                    self.outcomes.append("load-failed")
            return told.answer.ok

    def exercise(self, what: str) -> None:
        with self.step("exercise") as step:
            step.detail = what
            around = self.around(self.exercise_patience)
            told = module.exercise(self.guest, self.folder, what, self.loaded[-1][1].name, around)
            if self.ended(step, told, around) and not told.answer.ok:
                step.outcome = "failed"
                self.outcomes.append("test-failed")
                words = (told.answer.text + told.answer.error_text).strip().splitlines()
                tail = f": {printable(words[-1], 200)}" if words else ""
                self.reason = f"the exercise `{what}` ended with {told.answer.code}{tail}"
            self.exercise_log = told.answer.text + told.answer.error_text

    exercise_log = ""

    def unload(self, path: str, info: ModInfo) -> bool:
        with self.step("unload") as step:
            step.detail = info.name
            around = self.around()
            told = module.unload(self.guest, info.name, around)
            if not self.ended(step, told, around):
                return False
            failure = explain_unload_failure(
                told.answer.error_text,
                told.answer.code,
                info.name,
                told.holders,
                told.refcount,
                told.state,
                info.has_exit,
            )
            if failure:
                step.outcome = "failed"
                self.outcomes.append("unload-failed")
                self.reason = self.reason or failure.reason
            return failure is None

    def settle(self) -> None:
        """What the module left behind may go off now; then the taint as it is at the end."""
        deferring = any(_DEFERRING.search(name) for _, info in self.built.modules for name in self._imports(info))
        if self.loaded and deferring:
            self.witness.over.wait(_LINGER)
        try:
            taint, _ = module.read_state(self.guest, self.patient(_STATE_PATIENCE))
        except GuestUnreachable:
            self.alive = False
            self.witness.over.wait(2.0)
            if not self.witness.panicked:
                self.outcomes.append("lost")
            return
        self.taint = (self.taint[0], taint)

    def ended(self, step: _Timed, told: Told, around: Around) -> bool:
        """Whether the guest is still there after a step; if not, what that means is noted."""
        if told.answer.code is not None and not told.answer.lost:
            self.witness.wait_for(around.mark, self.patient(5.0))
            return True
        if told.answer.lost:
            self.witness.over.wait(2.0)
        self.alive = False
        if self.witness.panicked:
            step.outcome = "failed"
        elif told.answer.lost:
            step.outcome = "lost"
            self.outcomes.append("lost")
        else:
            step.outcome = "hang"
            self.outcomes.append("hang")
            self.look_at_cpus(step)
        return False

    def look_at_cpus(self, step: _Timed) -> None:
        """Where the CPUs are, before the guest is stopped; the kernel may not have said it, or not rightly."""
        try:
            text, frames = collect.place_of_cpus(
                self.host, self.guest.record, self.guest.files, self.built.images, self.folder
            )
        except LabError:
            return
        self.registers = text
        self.silent = [collect.silent_hang(frames, step.what.split()[0])]

    registers = ""

    # --- the verdict -----------------------------------------------------------------------------------------------

    def judged(self, draft: RunResult, crashes: list[Crash], before: frozenset[str]) -> RunResult:
        outcomes = [*self.outcomes, *(outcome_of(c) for c in crashes)]
        if crashes and "lost" in outcomes:
            outcomes = [o for o in outcomes if o != "lost"]
        if (
            any(o == "oops" for o in outcomes)
            and "hang" in self.outcomes
            and not any(c.kind == "hang" for c in crashes)
        ):
            outcomes = [o for o in outcomes if o != "hang"]  # the step did not end because its task was killed
        fresh_taint = self.taint[1] & ~self.taint[0]
        if fresh_taint & taint_mask(["WARN"]) and not self.allowed:
            outcomes.append("warning")
        log = self.witness.records
        missed = result.unmet_log(self.wanted.expect, log)
        outcome = result.worst([*outcomes, *(["test-failed"] if missed else [])])
        step = next((s for s in self.steps if s.outcome in ("failed", "hang", "lost")), None)
        title = crashes[0].title if crashes else None
        if title is None and outcome != "pass":
            title = self.reason or (f"{outcome} in step '{step.name}'" if step else outcome)
        if outcome == "hang" and not crashes and step:
            self.reason = self.reason or f"step '{step.name}' did not end within {self.step_patience:.0f} s"
        unmet = [*result.unmet_crash(self.wanted.expect, outcome, crashes), *missed]
        folder = draft.directory
        assert folder is not None
        (folder / "console.log").write_bytes(self.witness.raw())
        (folder / "dmesg.txt").write_text(collect.dmesg(log), encoding="utf-8")
        (folder / "build.log").write_text(self.built.log, encoding="utf-8")
        if self.registers:
            (folder / "registers.txt").write_text(printable_lines(self.registers), encoding="utf-8")
        if self.exercise_log:
            (folder / "exercise.log").write_text(printable_lines(self.exercise_log), encoding="utf-8")
        state, why = self._state_left(outcome, crashes)
        if self.alive:
            self.guest.mark(state, why)
        return dataclasses.replace(
            draft,
            kernel=self.guest.record.release,
            outcome=outcome,
            unmet=tuple(unmet),
            title=title,
            crashes=tuple(crashes),
            reason=self.reason,
            diagnostics=self.built.diagnostics,
            taint_before=self.taint[0],
            taint_after=self.taint[1],
            log=tuple(r for r in log if r.from_kernel),
            lost_records=self.witness.lost_records,
            steps=tuple(self.steps),
            guest_survived=self.alive,
            console="console.log",
            kernel_log="dmesg.txt",
            build_log="build.log",
        )

    def _state_left(self, outcome: str, crashes: Sequence[Crash]) -> tuple[str, str]:
        """In which state the guest is now, and why."""
        harmless = outcome in ("pass", "build-failed") or (outcome in ("test-failed", "load-failed") and not crashes)
        if not harmless:
            return "dirty", f"the last run ended in {outcome}"
        if not self._left_loaded():
            return "clean", ""
        return ("kept", "") if self.options.keep or self.wanted.keep else ("dirty", "a module was left loaded")

    def _left_loaded(self) -> bool:
        unloaded = {s.detail for s in self.steps if s.name == "unload" and s.outcome == "ok"}
        return any(info.name not in unloaded for _, info in self.loaded)

    def _allowed(self, crash: Crash) -> bool:
        patterns = (*self.lab.allow, *self.wanted.expect.allow)
        return outcome_of(crash) == "warning" and any(matches(p, crash.title) for p in patterns)

    def _imports(self, info: ModInfo) -> Sequence[str]:
        image = next(self.built.images[path] for path, known in self.built.modules if known is info)
        from kmlab.kernel.elf import read_object

        return [symbol.name for symbol in read_object(image, info.name).symbols if not symbol.section]

    # --- time ------------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return self.alive and not self.witness.over.is_set()

    def patient(self, seconds: float) -> Deadline:
        return Deadline(seconds * self.patience)

    def around(self, patience: float | None = None) -> Around:
        deadline = _Doom(patience or self.step_patience, self.witness)
        return Around(deadline, self.witness.over, self.witness.new_mark())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[_Timed]:
        timed = _Timed(self.report, self.guest.record.name, f"{name} {self.wanted.name}")
        began = time.monotonic()
        try:
            with timed:
                yield timed
        finally:
            took = time.monotonic() - began
            self.steps.append(Step(name, timed.outcome, took, timed.detail, began - self.began))


@dataclass(slots=True)
class _Timed(Stage):
    outcome: str = "ok"


class _Doom(Deadline):
    """A step's deadline, which has also passed once the kernel has said that the step will not end."""

    __slots__ = ("_witness",)

    def __init__(self, seconds: float, witness: collect.Witness) -> None:
        super().__init__(seconds)
        self._witness = witness

    @property
    def passed(self) -> bool:
        return super().passed or self._witness.doomed


def printable_lines(text: str) -> str:
    """A program's output as lines that are safe to show."""
    return "".join(f"{printable(line)}\n" for line in text.splitlines())


def _shown_source(lab: Lab, wanted: Module) -> str:
    place = lab.locate(wanted.source)
    with contextlib.suppress(ValueError):
        return str(PurePosixPath(place.resolve().relative_to(lab.folder.resolve())))
    return str(place)
