"""Sign the built modules if the guest needs it, and send the guest what it does not have yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kmlab.common.events import Deadline, printable
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.run.build.delivery import deliver
from kmlab.run.context import guest_commands
from kmlab.run.context.results import BuildStepResult, Results
from kmlab.run.context.run_context import RunContext


def sign(context: RunContext, so_far: Results) -> Sequence[BuildStepResult]:
    """Sign on the host: the guest gets the signed modules, and never the key."""
    build, delivered, signer = so_far.build, so_far.delivered, context.signer
    guest, name, deadline = context.guest, context.module.name, Deadline(context.build_patience)
    if not build.ok:
        return ()
    if signer is None:
        deliver(guest, name, build.undelivered, delivered, deadline)
        return ()
    with context.step("sign") as timer:
        timer.stage.detail = signer.name
        reason: str | None = None
        try:
            images = {path: signer.sign(image, path) for path, image in build.images.items()}
        except MalformedModule as error:
            timer.stage.outcome = "failed"
            reason = f"the built module cannot be signed: {printable(error.message, 300)}"
        else:
            deliver(guest, name, {**build.undelivered, **images}, delivered, deadline)
            if signer.strips:
                images = guest_commands.strip(guest, context.top, list(images), deadline)
    if reason is not None:
        bad = dataclasses.replace(build, ok=False, reason=reason)
        return [timer.result(BuildStepResult, build=bad, verdict="build-failed", reason=reason)]
    return [timer.result(BuildStepResult, build=dataclasses.replace(build, images=images), delivered=delivered)]
