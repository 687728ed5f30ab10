"""Load the kernel's own modules that lab.yaml's `modprobe` names, such as i2c-stub: the module finds devices there."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from kmlab.common.errors import LabError
from kmlab.common.events import printable
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.outdated import UnfitGuest
from kmlab.run.context.results import ModprobeStepResult, Results
from kmlab.run.context.run_context import RunContext


def load_software_devices(context: RunContext, so_far: Results) -> Sequence[ModprobeStepResult]:
    """Run modprobe for each line. In a used guest that has one of them already, ask for a restored guest."""
    if not context.module.modprobe or not so_far.build.ok or "load" not in context.options.steps:
        return ()
    loaded = so_far.modules[0]
    already = next((name for name in context.module.software_devices if name in loaded), None)
    if already and not so_far.baseline.unused:
        raise UnfitGuest(f"{already} is loaded in it, and its options may be others")
    results: list[ModprobeStepResult] = []
    for line in context.module.modprobe:
        results.append(_modprobe(context, so_far.plus(results), line))
        if results[-1].guest_gone or not context.usable:
            break
    return results


def _modprobe(context: RunContext, so_far: Results, line: str) -> ModprobeStepResult:
    with context.step("modprobe") as timer:
        timer.stage.detail = line
        command = functools.partial(guest_commands.modprobe, context.guest, line)
        result, facts = run_in_guest(context, so_far, timer, command, context.step_patience)
        if not facts.get("guest_gone") and not result.answer.ok:
            context.guest.mark("dirty", "modprobe failed in it")
            said = printable(" ".join(result.answer.error_text.split()), 200)
            release = context.guest.record.release
            hint = (
                f"kernel {release} does not have it; `kernel: generic` of the guest has more modules"
                if "not found" in said
                else "`kmlab log` has what the kernel says"
            )
            raise LabError(f"modprobe {line}: {said}", hint)
    return timer.result(ModprobeStepResult, **facts)
