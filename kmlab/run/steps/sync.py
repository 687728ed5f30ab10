"""Copy the module's folder from the host to the guest."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.common.events import Deadline
from kmlab.run.build import source_folder
from kmlab.run.context.outdated import give_up_if_outdated
from kmlab.run.context.results import Results, StepResult
from kmlab.run.context.run_context import RunContext


def sync(context: RunContext, so_far: Results) -> Sequence[StepResult]:
    """Send the files that changed."""
    with context.step("sync") as timer:
        deadline = Deadline(context.build_patience)
        tree = context.request.tree
        about = (context.guest, context.module.name, tree.root)
        sent, removed = source_folder.sync(*about, deadline, str(tree.below))
        timer.stage.detail = f"{sent} sent, {removed} removed" if sent or removed else "nothing changed"
    give_up_if_outdated(context)
    return [timer.result(StepResult)]
