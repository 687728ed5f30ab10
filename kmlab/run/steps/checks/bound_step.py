"""Find which devices the module's drivers were bound to, after the load and after the exercise."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.common.errors import GuestUnreachable
from kmlab.kernel.module.bound_devices import (
    Driver,
    describe_unbound,
    parse_drivers,
    question,
    registers_driver,
    unite,
)
from kmlab.run.context.results import ExerciseStepResult, ProbeStepResult, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext

_LATER = 1.0
"""Seconds for a driver that probes its devices asynchronously (PROBE_PREFER_ASYNCHRONOUS)."""


def probe(context: RunContext, so_far: Results) -> Sequence[ProbeStepResult]:
    """Read the bindings after the load."""
    if not _has_drivers(context, so_far):
        return ()
    return [_read(context, so_far)]


def probe_again(context: RunContext, so_far: Results) -> Sequence[ProbeStepResult]:
    """Read them again if the exercise may have bound a device, or if the driver may still be at it."""
    if not _has_drivers(context, so_far) or not so_far.all(ProbeStepResult):
        return ()
    bound = any(driver.devices for driver in so_far.drivers)
    if bound and not so_far.all(ExerciseStepResult):
        return ()
    if not bound and so_far.drivers and not so_far.all(ExerciseStepResult):
        context.console.over.wait(_LATER)
    return [_read(context, so_far, last=True)]


def _has_drivers(context: RunContext, so_far: Results) -> bool:
    """Return whether a loaded module may have registered a driver. Other modules do not pay for the question."""
    if not so_far.loaded or not so_far.alive or not context.usable:
        return False
    images = (so_far.build.images.get(step.path, b"") for step in so_far.loaded)
    return bool(context.module.expect.wants_bound) or any(map(registers_driver, images))


def _read(context: RunContext, so_far: Results, *, last: bool = False) -> ProbeStepResult:
    with context.step("probe") as timer:
        names = [step.info.name for step in so_far.loaded if step.info]
        drivers = so_far.drivers
        try:
            deadline = context.deadline(STATE_PATIENCE)
            answer = context.guest.run(question(names), deadline, abandon=context.console.over)
            drivers = unite(drivers, parse_drivers(answer.out))
        except GuestUnreachable:
            pass  # the next step finds out why
        timer.stage.detail = "; ".join(map(_described, drivers)) or "no driver"
    reason = _unbound(so_far, drivers) if last else None
    return timer.result(ProbeStepResult, kernel=so_far.kernel, drivers=drivers, reason=reason)


def _described(driver: Driver) -> str:
    return f"{driver.title}: {', '.join(driver.devices) or 'no device'}"


def _unbound(so_far: Results, drivers: Sequence[Driver]) -> str | None:
    """Return the remark about a module none of whose drivers was bound to a device."""
    if not drivers or any(driver.devices for driver in drivers):
        return None
    first = drivers[0]
    infos = [step.info for step in so_far.loaded if step.info and step.info.name == first.module]
    return describe_unbound(first, infos[0].aliases if infos else ())
