"""The steps of one run in a guest: what is done, what came of each, and what the guest said meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline, Note, Report, Stage, printable
from kmlab.config.lab import Lab, Module, Param
from kmlab.config.run_options import Options
from kmlab.diagnosis import console, hang
from kmlab.host import Host
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.source_lines import located, symbols_of
from kmlab.kernel.crash.watchdogs import ladder
from kmlab.kernel.log.records import KernelLog, parse_log
from kmlab.kernel.log.taint import find_taints, taint_mask
from kmlab.kernel.module.load_errors import explain_load_failure, find_ignored_params, not_listed
from kmlab.kernel.module.modinfo import ModInfo, format_params
from kmlab.kernel.module.proc_modules import Look
from kmlab.kernel.module.unload_errors import explain_unload_failure
from kmlab.kernel.symbols.elf import MalformedModule, read_object
from kmlab.provision import lifecycle
from kmlab.provision.guest import Guest, slowness
from kmlab.run import guest_commands
from kmlab.run.build import build_in_guest, deliver, still_delivered
from kmlab.run.guest_commands import Around, Built, Step, Told
from kmlab.run.sandbox_build import Ahead

if TYPE_CHECKING:
    from kmlab.kernel.signing.load_check import GuestKeyring
    from kmlab.provision.plan.lab_key import Signer

_BUILD_PATIENCE = 300.0
_EXERCISE_PATIENCE = 300.0
"""Seconds for a person's own program; a load or an unload has the ladder's last rung."""
_STATE_PATIENCE = 10.0
_MARK_PATIENCE = 2.5
"""Seconds for our own mark to come from the kernel's log to the console."""
_PANIC_PATIENCE = 0.5
"""Seconds for a guest to answer whose console says that it has panicked."""
AFTERWARDS = "afterwards"
"""The time after the last step, as if it were one."""
_LINGER = 2.5
"""Seconds after the unload in which something that the module left behind may still go off."""
_DEFERRING = re.compile(
    r"(timer|hrtimer|work|tasklet|kthread|wake_up_process|request_.*irq|register|notifier|call_rcu|kprobe|proc_|sysfs|debugfs|"
    r"misc_|cdev|class_|device_|netdev|irq_work|smp_call|completion|swait)"
)
"""Kernel functions through which code of a module can run after its unload has returned."""
_INIT_RAN = ("init-error", "init-crash", "firmware", "memory")
"""Failures to load of a module that may have left something behind all the same."""


class Outdated(Exception):
    """The run was given up before anything of the module ran, because its source has changed since it began."""


class UnfitGuest(Exception):
    """The guest cannot be believed, because of what was done to it before this run."""


class Steps:
    """One module's way through one guest; `go` once, then read what came of it."""

    def __init__(
        self,
        host: Host,
        lab: Lab,
        guest: Guest,
        wanted: Module,
        options: Options,
        report: Report,
        began: float,
        signer: Signer | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.host = host
        self.ahead = ahead
        self.lab, self.guest, self.wanted, self.options, self.report = lab, guest, wanted, options, report
        self.began = began
        self.signer = signer
        self.source = lab.locate(wanted.source)
        self.folder = guest_commands.workshop(wanted.name)
        self.ran_before: Sequence[str] = ()
        """Other modules that were run in the guest since it was restored."""
        self.first = True
        """Whether nothing was run in it before."""
        self.steps: list[Step] = []
        self.outcomes: list[str] = []
        self.reason: str | None = None
        self.failure: str | None = None
        """Which kind of failure to load, in a word."""
        self.built = Built(False, "", "")
        self.loaded: list[tuple[str, ModInfo]] = []
        self.hidden: set[str] = set()
        """Those of them that the kernel does not list."""
        self.sections: dict[str, Mapping[str, int]] = {}
        """Of each module that was loaded, where its sections were."""
        self.alive = True
        self.taint: tuple[int, int] = (0, 0)
        """Before the run, and as it was last seen."""
        self.tainted_by: dict[int, str] = {}
        """The step after which each new bit of the taint was first seen."""
        self.modules: tuple[frozenset[str], frozenset[str] | None] = (frozenset(), None)
        """Loaded before and after; None where the guest could not be asked any more."""
        self.seen: Look | None = None
        """What the guest's kernel had when it was last asked, if nothing has gone on since."""
        self.names_before: frozenset[str] | None = None
        """What devices, files and file systems the guest's kernel had before the module was loaded."""
        self.witness = console.Witness(guest.files.console, self.answers)
        timeout = options.timeout or wanted.timeout
        self.step_patience = timeout or float(ladder(guest.record.accel).silence)
        self.exercise_patience = timeout or _EXERCISE_PATIENCE * self.patience
        self.inside = hang.Inside()
        """What a look from outside found in a guest whose step did not end."""
        self.exercise_log = ""
        self.build_patience = build_patience(options, wanted, guest.record.accel)

    @functools.cached_property
    def keyring(self) -> GuestKeyring | None:
        """The guest's keys as they were when it was last started; None without Secure Boot."""
        from kmlab.provision.plan.lab_key import keyring_of

        return keyring_of(self.guest.files, self.guest.record.name)

    def answers(self) -> bool:
        """Whether the guest says what its kernel has, as one that has panicked cannot."""
        with contextlib.suppress(GuestUnreachable):
            self.guest.look(self.patient(_PANIC_PATIENCE))
            return True
        return False

    @property
    def patience(self) -> float:
        return 2.0 if self.guest.record.accel == "tcg" else 1.0

    def go(self) -> list[Crash]:
        """All the steps; the findings in what the kernel said, with the lines of the module."""
        state = self.build_first()
        self.seen = state.kernel
        self.taint, self.modules = (self.seen.taint, self.seen.taint), (frozenset(self.seen.modules), None)
        if "load" not in self.options.steps:
            self.names_before = guest_commands.noted_names(self.guest, self.wanted.name)
        elif not self.own & self.seen.modules.keys():
            self.names_before = state.names
            guest_commands.note_names(self.guest, self.wanted.name, state.names)
        self.first = not self.guest.record.ran
        self.ran_before = [name for name in self.guest.record.ran if name != self.wanted.name]
        loads = self.built.ok and {"load", "unload"} & set(self.options.steps)
        self.guest.begin_run(self.wanted.name if loads else None)
        with self.witness:
            if self.built.ok:
                self.hear(self.witness.begin)
                self.require_ear()
                self.load_use_unload()
            if self.alive and not self.witness.panicked:
                self.settle()
            found = self.witness.finish(self.own, self.ring())
        if self.witness.panicked:
            self.alive = False
        if not self.alive and self.steps:
            self.note_taint(find_taints(record.text for record in self.witness.records), self.steps[-1].name)
        if self.alive:
            # A panic stops the kernel, so what only reads like one is something that was printed.
            found = [dataclasses.replace(crash, fatal=False) for crash in found if crash.kind != "panic"]
        symbols = symbols_of(self.built.images, self.folder)
        crashes = [located(c, symbols, self.folder, self.sections) for c in found]
        for problem in dict.fromkeys(known.problem for known in symbols.values() if known.problem):
            self.report(Note(self.guest.record.name, f"no lines: {printable(problem, 300)}"))
        return hang.told_of_hang(crashes, self.inside.busy, self.inside.silent, self.own)

    @property
    def own(self) -> frozenset[str]:
        """The names of the modules that were built."""
        return frozenset(info.name for _, info in self.built.modules)

    @property
    def left_loaded(self) -> bool:
        """Whether a module that was loaded is there still."""
        unloaded = {s.detail for s in self.steps if s.name == "unload" and s.outcome == "ok"}
        return any(info.name not in unloaded for _, info in self.loaded)

    def build_first(self) -> guest_commands.State:
        """Sync and build: nothing of the module's runs yet. What the guest's kernel has before it does."""
        deadline = Deadline(self.build_patience)
        with self.step("sync") as step:
            sent, removed = guest_commands.sync(self.guest, self.wanted.name, self.source, deadline)
            step.detail = f"{sent} sent, {removed} removed" if sent or removed else "nothing changed"
        self.give_up_if_outdated()
        state = guest_commands.read_state(self.guest, self.witness.begin, self.patient(_STATE_PATIENCE))
        there: Mapping[str, str] = {}
        if self.ahead is not None and self.ahead.in_sandbox():
            there = still_delivered(self.guest, self.wanted.name, deadline)
            self.built = self.ahead.built()
            began, took = self.ahead.began - self.began, self.ahead.ended - self.ahead.began
            self.steps.append(Step("build", "ok" if self.built.ok else "failed", took, self.built.paths, began))
        else:
            with self.step("build") as step:
                self.built = build_in_guest(
                    self.guest, self.wanted.name, self.source, deadline, lambda line: step.progress(detail=line)
                )
                step.detail = self.built.paths
                step.outcome = "ok" if self.built.ok else "failed"
        self.give_up_if_outdated()
        if not self.built.ok:
            self.outcomes.append("build-failed")
            self.reason = self.built.reason
        elif self.signer is not None:
            self.sign(self.signer, there, deadline)
        else:
            deliver(self.guest, self.wanted.name, self.built.undelivered, there, deadline)
        return state

    def give_up_if_outdated(self) -> None:
        if self.options.outdated is not None and self.options.outdated():
            raise Outdated

    def sign(self, signer: Signer, there: Mapping[str, str], deadline: Deadline) -> None:
        """Sign what was built, here on the host: the guest gets the signed modules, and never the key."""
        with self.step("sign") as step:
            step.detail = signer.name
            try:
                signed = {path: signer.sign(image, path) for path, image in self.built.images.items()}
            except MalformedModule as error:
                step.outcome = "failed"
                self.outcomes.append("build-failed")
                self.reason = f"what the build made cannot be signed: {printable(error.message, 300)}"
                self.built = dataclasses.replace(self.built, ok=False, reason=self.reason)
                return
            self.built = dataclasses.replace(self.built, images=signed)
            deliver(self.guest, self.wanted.name, {**self.built.undelivered, **signed}, there, deadline)
            if signer.strips:
                stripped = guest_commands.strip(self.guest, self.folder, list(signed), deadline)
                self.built = dataclasses.replace(self.built, images=stripped)

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
            around = self.around()
            params = format_params(self.params_of(path, info))
            told = guest_commands.load(self.guest, self.folder, path, info.name, params, around, outside)
            if not self.ended(step, told, around):
                return False
            said = [r.text for r in self.witness.since(position)]
            failure = explain_load_failure(
                told.answer.error_text,
                told.answer.code,
                said,
                info.name,
                self.guest.record.release,
                info,
                already_loaded=info.name in self.modules[0],
                symbol_owner=lambda symbol: guest_commands.owner_of(self.guest, symbol, self.patient(_STATE_PATIENCE)),
            )
            if told.answer.ok and not self.is_loaded(told, info):
                failure = not_listed(info.name)
            elif told.answer.ok:
                self.loaded.append((path, info))
                if told.now and info.name not in told.now.modules:
                    self.hidden.add(info.name)
                self.sections[info.name] = told.now.sections if told.now else {}
                ignored = find_ignored_params(said, info.name)
                if ignored and not failure:
                    has = ", ".join(param.name for param in info.params) or "none"
                    self.reason = f"{info.name} has no parameter {', '.join(ignored)}, which was ignored: it has {has}"
                elif info.license is None and not failure:
                    self.reason = (
                        f"{info.name} has no MODULE_LICENSE(): the kernel counts it as proprietary, hides GPL-only "
                        'symbols from it and is tainted; add MODULE_LICENSE("GPL"), or your own'
                    )
            if failure:
                self.reason, self.failure = failure.reason, failure.kind
                if failure.kind == "signature" and self.keyring is not None:
                    from kmlab.provision.plan.lab_key import why_refused

                    known = lifecycle.lab_files(self.lab)
                    with contextlib.suppress(MalformedModule):
                        about = (self.built.images[path], info.name, self.keyring)
                        self.reason = why_refused(known, *about) or failure.reason
                if failure.kind != "init-positive":
                    step.outcome = "failed"
                    self.outcomes.append("load-failed")
                    return False
            return True

    def is_loaded(self, told: Told, info: ModInfo) -> bool:
        """Whether the kernel has the module that insmod says it has loaded.

        One that takes itself off the kernel's list still has its sections in /sys, or has brought a taint.
        """
        if told.now is None:
            return True  # the guest is gone since, which the next step says
        out_of_tree = taint_mask(["OOT_MODULE"])
        brought = told.now.taint & ~self.taint[0] & out_of_tree
        return bool(told.listed(info.name) or told.now.sections or brought)

    def params_of(self, path: str, info: ModInfo) -> dict[str, Param]:
        """What was asked for that this module has; the last one also gets what none has, to be complained of."""
        asked = {**self.wanted.params, **self.options.params}
        known = {p.name for _, each in self.built.modules for p in each.params}
        own = {p.name for p in info.params} | (set(asked) - known if path == self.built.modules[-1][0] else set())
        return {name: value for name, value in asked.items() if name in own}

    def exercise(self, what: str) -> None:
        with self.step("exercise") as step:
            step.detail = what
            around = self.around(self.exercise_patience)
            told = guest_commands.exercise(self.guest, self.folder, what, self.loaded[-1][1].name, around)
            if self.ended(step, told, around) and not told.answer.ok:
                step.outcome = "failed"
                self.outcomes.append("test-failed")
                words = (told.answer.text + told.answer.error_text).strip().splitlines()
                tail = f": {printable(words[-1], 200)}" if words else ""
                self.reason = f"the exercise `{what}` ended with {told.answer.code}{tail}{self.locked_down(words)}"
            self.exercise_log = told.answer.text + told.answer.error_text

    def locked_down(self, words: Sequence[str]) -> str:
        """What to add where a program may have failed over what Secure Boot closes, and not over the module."""
        if self.keyring is None or self.keyring.lockdown in ("", "none"):
            return ""
        if not any("Operation not permitted" in line for line in words):
            return ""
        return "; this guest is locked down, which closes most of debugfs, /dev/mem and the like even to root"

    def unload(self, path: str, info: ModInfo) -> bool:
        with self.step("unload") as step:
            step.detail = info.name
            around = self.around()
            told = guest_commands.unload(self.guest, info.name, around)
            if not self.ended(step, told, around):
                return False
            there = told.listed(info.name)
            about = (told.answer.error_text, told.answer.code, info.name, there)
            failure = explain_unload_failure(*about, info.has_exit, hidden=info.name in self.hidden)
            if failure and failure.kind == "in-use" and there and (there.refcount or 0) > len(there.holders):
                with contextlib.suppress(GuestUnreachable):
                    deadline = self.patient(_STATE_PATIENCE)
                    found = guest_commands.holders_of(self.guest, info.name, self.names_before, deadline)
                    failure = explain_unload_failure(*about, info.has_exit, found)
            if failure:
                step.outcome = "failed"
                self.outcomes.append("unload-failed")
                self.reason = self.reason or failure.reason
            return failure is None

    def settle(self) -> None:
        """What the module left behind may go off now; then the taint as it is at the end."""
        deferring = any(_DEFERRING.search(name) for _, info in self.built.modules for name in self._imports(info))
        if deferring and (self.loaded or self.failure in _INIT_RAN):
            self.witness.over.wait(_LINGER)
            self.seen = None
        try:
            self.seen = self.seen or self.guest.look(self.patient(_STATE_PATIENCE), abandon=self.witness.over)
        except GuestUnreachable:
            self.alive = False
            self.witness.over.wait(2.0)
            if not self.witness.panicked:
                hang.is_there(self.host, self.guest)
                self.outcomes.append("lost")
            return
        self.modules = (self.modules[0], frozenset(self.seen.modules))
        self.note_taint(self.seen.taint, AFTERWARDS)

    def hear(self, mark: str) -> None:
        """Wait until a mark of ours has come to the console; where it does not, the witness is deaf from then on."""
        self.witness.wait_for(mark, self.patient(_MARK_PATIENCE))

    def require_ear(self) -> None:
        """UnfitGuest where the console of a guest that was used before says nothing any more."""
        if self.witness.deaf and not self.first:
            raise UnfitGuest("its console had fallen silent")

    def ring(self) -> KernelLog | None:
        """The guest's own ring buffer; None where it cannot be asked any more."""
        if not self.alive or self.witness.panicked:
            return None
        answer = self.guest.shell.kernel_log(self.patient(_STATE_PATIENCE))
        log = parse_log(answer.out)
        return None if answer.code is None else log if answer.ok else log._replace(dropped=max(log.dropped, 1))

    def note_taint(self, taint: int, step: str) -> None:
        """Whatever is new in the taint came about in that step."""
        for bit in range(taint.bit_length()):
            if taint & ~self.taint[1] & 1 << bit:
                self.tainted_by[bit] = step
        self.taint = (self.taint[0], self.taint[1] | taint)

    def ended(self, step: Stage, told: Told, around: Around) -> bool:
        """Whether the guest is still there after a step; if not, what that means is noted."""
        self.seen = told.now
        if told.now is not None:
            self.note_taint(told.now.taint, step.what.split()[0])
        if told.answer.code is not None and not told.answer.lost:
            self.hear(around.mark)
            return True
        if told.answer.lost:
            self.witness.over.wait(2.0)
        self.alive = False
        if self.witness.panicked:
            step.outcome = "failed"
        elif told.answer.lost:
            step.outcome = "lost"
            self.outcomes.append("lost")
        elif not hang.is_there(self.host, self.guest):
            # QEMU had ended it without a word to anybody: a reboot, or a triple fault.
            step.outcome = "lost"
            self.outcomes.append("lost")
        else:
            step.outcome = "hang"
            self.outcomes.append("hang")
            began = step.what.split()[0]
            asked = (self.built.images, self.folder, self.own, began)
            self.inside = hang.look_inside(self.host, self.guest, self.witness, *asked)
        return False

    def _imports(self, info: ModInfo) -> Sequence[str]:
        image = next(self.built.images[path] for path, known in self.built.modules if known is info)
        with contextlib.suppress(MalformedModule):  # which it is no more than the guest's strip(1) made it
            return [symbol.name for symbol in read_object(image, info.name).symbols if not symbol.section]
        return []

    # --- time ---

    @property
    def usable(self) -> bool:
        return self.alive and not self.witness.over.is_set()

    def patient(self, seconds: float) -> Deadline:
        return Deadline(seconds * self.patience)

    def around(self, patience: float | None = None) -> Around:
        deadline = _Doom(patience or self.step_patience, self.witness)
        return Around(deadline, self.witness.over, self.witness.new_mark())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Stage]:
        timed = Stage(self.report, self.guest.record.name, f"{name} {self.wanted.name}")
        began = time.monotonic()
        try:
            with timed:
                yield timed
        finally:
            took = time.monotonic() - began
            self.steps.append(Step(name, timed.outcome, took, timed.detail, began - self.began))


def build_patience(options: Options, wanted: Module, accel: str) -> float:
    """Seconds that make may take."""
    return max(options.timeout or wanted.timeout or 0, _BUILD_PATIENCE * slowness(accel))


class _Doom(Deadline):
    """A step's deadline, which has also passed once the kernel has said that the step will not end."""

    __slots__ = ("_witness",)

    def __init__(self, seconds: float, witness: console.Witness) -> None:
        super().__init__(seconds)
        self._witness = witness

    @property
    def passed(self) -> bool:
        return super().passed or self._witness.doomed
