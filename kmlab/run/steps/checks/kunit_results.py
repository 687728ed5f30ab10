"""Read what KUnit keeps of a loaded module's suites (Documentation/dev-tools/kunit/run_manual.rst)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kmlab.run.context.results import KunitStepResult, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext

_FILES = ("/proc/sys/kernel/tainted", "/sys/kernel/debug/kunit/*/results")
"""The first one is always there: tail(1) names a file only if it shows several."""
_SUITES = b".kunit_test_suites\0"
"""The section in which a module lists its suites (include/kunit/test.h)."""
_TITLE = re.compile(r"^==> /sys/kernel/debug/kunit/([^/\n]+)/results <==\n", re.MULTILINE)


def read_kunit_results(context: RunContext, so_far: Results) -> Sequence[KunitStepResult]:
    """Read the results of the suites that a loaded module has. Other modules do not pay for it."""
    images = [so_far.build.images.get(step.path, b"") for step in so_far.loaded]
    images = [image for image in images if _SUITES in image]
    if not images or not context.usable or not so_far.alive:
        return ()
    answer = context.guest.shell.read_files(_FILES, context.deadline(STATE_PATIENCE), abandon=context.console.over)
    _, *parts = _TITLE.split(answer.text)
    # The kernel's own suites are there, too. They ran when it booted, and say nothing about this module.
    named = zip(parts[::2], parts[1::2], strict=True)
    own = tuple(text for name, text in named if any(name.encode() + b"\0" in image for image in images))
    return [KunitStepResult("kunit", kernel=so_far.kernel, outputs=own, shown=False)]
