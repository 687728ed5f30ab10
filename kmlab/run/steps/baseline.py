"""Record the guest's state before the module runs, and mark the run's begin in the kernel's log."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.kernel.module.users import NAMES, parse_names
from kmlab.run.context.results import Baseline, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext


def record_baseline(context: RunContext, so_far: Results) -> Sequence[Baseline]:
    """Ask the guest for its kernel's state, and for the names of its devices, files and file systems."""
    guest, deadline = context.guest, context.deadline(STATE_PATIENCE)
    names = parse_names(guest.run(NAMES, deadline).text)
    kernel = guest.read_kernel_state(deadline, mark=context.console.begin)
    ran = guest.record.ran
    baseline = Baseline(
        "baseline",
        kernel=kernel,
        names=names,
        ran_before=tuple(name for name in ran if name != context.module.name),
        unused=not ran,
        shown=False,
    )
    return [baseline]
