"""Wait for delayed effects of the module, then read the kernel's final state."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from kmlab.common.errors import GuestUnreachable
from kmlab.diagnosis import hang
from kmlab.kernel.symbols.elf import MalformedModule, read_object
from kmlab.run.context.results import AFTERWARDS, Results, StepResult
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext

_LINGER = 2.5
"""Seconds after the unload in which something that the module left behind may still run."""
_LAST_WORDS = 2.0
"""Seconds for the console to report a panic of a guest that does not answer."""
_DEFERRING = re.compile(
    r"(timer|hrtimer|work|tasklet|kthread|wake_up_process|request_.*irq|register|notifier|call_rcu|kprobe|proc_|sysfs|debugfs|"
    r"misc_|cdev|class_|device_|netdev|irq_work|smp_call|completion|swait)"
)
"""Kernel functions through which code of a module can run after its unload has returned."""
_INIT_RAN = ("init-error", "init-crash", "firmware", "memory")
"""Failures to load of a module that may have left something behind all the same."""


def settle(context: RunContext, so_far: Results) -> Sequence[StepResult]:
    """Wait if the module can have left something that runs later; then read the kernel's state."""
    kernel = so_far.kernel
    if _defers(so_far) and (so_far.loaded or so_far.failure in _INIT_RAN):
        context.console.over.wait(_LINGER)
        kernel = None
    try:
        if kernel is None:
            kernel = context.guest.read_kernel_state(context.deadline(STATE_PATIENCE), abandon=context.console.over)
    except GuestUnreachable:
        context.console.over.wait(_LAST_WORDS)
        lost = not context.console.panicked
        if lost:
            hang.guest_exists(context.host, context.guest)  # raises LabError if the host's disk is full
        return [StepResult(AFTERWARDS, guest_gone=True, verdict="lost" if lost else None, shown=False)]
    return [StepResult(AFTERWARDS, kernel=kernel, shown=False)]


def _defers(so_far: Results) -> bool:
    """Return whether the module uses anything through which its code can run after the unload."""
    for path, info in so_far.build.modules:
        with contextlib.suppress(MalformedModule):  # strip(1) in the guest may have written anything
            symbols = read_object(so_far.build.images[path], info.name).symbols
            if any(not symbol.section and _DEFERRING.search(symbol.name) for symbol in symbols):
                return True
    return False
