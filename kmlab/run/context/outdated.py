"""Define why a run may stop before anything of the module runs."""

from __future__ import annotations

from kmlab.run.context.run_context import RunContext


class Outdated(Exception):
    """The source has changed since the run began."""


class UnfitGuest(Exception):
    """The guest is not reliable, because of an earlier run."""


def give_up_if_outdated(context: RunContext) -> None:
    """Raise Outdated if the run's options say that the source has changed."""
    if context.options.outdated is not None and context.options.outdated():
        raise Outdated
