"""Try every way to sign one module, with Secure Boot on and off, and compare with the expected outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kmlab.common.events import AskPassphrase, EventSink
from kmlab.config.lab import Expect, GuestSpec, Lab, Module
from kmlab.config.run_options import ALTERED, LAB_KEY, NO_KEY, STRIPPED, WRONG_KEY
from kmlab.host import Host
from kmlab.kernel.log.taint import taint_names
from kmlab.provision import lifecycle
from kmlab.run import run
from kmlab.run.documents import SecureBootDocument
from kmlab.run.result import RunResult

REFUSED, LOADS, TAINTS = "refused", "loads", "loads, taints (E)"
WAYS = {
    NO_KEY: "unsigned",
    WRONG_KEY: "signed with a foreign key",
    ALTERED: "altered after signing",
    STRIPPED: "stripped after signing",
    LAB_KEY: "signed with the lab's key",
}
"""The ways to sign, by the word for `--sign-with`."""
_NAME_LIMIT = 31


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of signing in one guest."""

    way: str
    spec: GuestSpec
    result: RunResult

    @property
    def expected(self) -> str:
        return expected(self.way, self.spec.secure_boot)

    @property
    def happened(self) -> str:
        """Return refused, loads, or the outcome of the run."""
        load = next((step.outcome for step in self.result.steps if step.name == "load"), None)
        if load == "ok":
            return TAINTS if "UNSIGNED_MODULE" in taint_names(self.result.taint_after) else LOADS
        return REFUSED if self.result.failure == "signature" else self.result.outcome

    @property
    def ok(self) -> bool:
        return self.happened == self.expected


def expected(way: str, secure_boot: bool) -> str:
    """Return what kernels do: with Secure Boot only the enrolled key counts, without it no key does."""
    if not secure_boot:
        return TAINTS
    return LOADS if way == LAB_KEY else REFUSED


def run_matrix(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    module_to_sign: Module,
    ask: AskPassphrase | None,
    events: EventSink,
    on_result: Callable[[RunResult], None],
) -> list[Cell]:
    """Try every way of signing, in each of these guests and in its twin with the opposite Secure Boot setting."""
    plain = dataclasses.replace(module_to_sign, exercise=None, collect=(), keep=False)
    refused = dataclasses.replace(plain, expect=Expect(outcome=("load-failed",)))
    cells = []
    pairs = [spec for each in specs for spec in (twin(lab, each, True), twin(lab, each, False))]
    for spec in {spec.name: spec for spec in pairs}.values():
        try:
            for way in WAYS:
                options = run.Options(sign=way, ask=ask, fresh=way == next(iter(WAYS)))
                module = refused if expected(way, spec.secure_boot) == REFUSED else plain
                cells.append(Cell(way, spec, run.run(host, lab, spec, module, options, events)))
                on_result(cells[-1].result)
        finally:
            if spec.name not in lab.guests:
                lifecycle.destroy_lab(host, lab, [spec.name], all_state=False, report=events)
    return cells


def twin(lab: Lab, spec: GuestSpec, secure_boot: bool) -> GuestSpec:
    """Return the guest itself if it fits, a guest of the lab with the same other settings, or a temporary one."""
    if spec.secure_boot == secure_boot:
        return spec
    for other in lab.guests.values():
        alike = dataclasses.replace(other, name=spec.name, secure_boot=spec.secure_boot) == spec
        if alike and other.secure_boot == secure_boot:
            return other
    ending = "-secure" if secure_boot else "-plain"
    return dataclasses.replace(spec, name=spec.name[: _NAME_LIMIT - len(ending)] + ending, secure_boot=secure_boot)


def document(cells: Sequence[Cell]) -> SecureBootDocument:
    return {
        "schema": "kmlab.secure-boot-matrix/1",
        "module": cells[0].result.module,
        "source": cells[0].result.source,
        "ok": all(cell.ok for cell in cells),
        "cells": [
            {
                "guest": cell.spec.name,
                "kernel": cell.result.kernel,
                "secure_boot": cell.spec.secure_boot,
                "way": cell.way,
                "expected": cell.expected,
                "happened": cell.happened,
                "ok": cell.ok,
                "reason": cell.result.reason,
                "taint": taint_names(cell.result.taint_after),
                "directory": str(cell.result.directory) if cell.result.directory else None,
            }
            for cell in cells
        ],
    }


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return the table for people: ways down, guests across; unexpected cells are marked."""
    guests = list(dict.fromkeys(cell.spec.name for cell in cells))
    heads = {}
    for cell in cells:
        heads[cell.spec.name] = f"{cell.spec.name}, Secure Boot {'on' if cell.spec.secure_boot else 'off'}"
    texts = {
        (cell.way, cell.spec.name): cell.happened if cell.ok else f"! {cell.happened} (expected: {cell.expected})"
        for cell in cells
    }
    first = max(map(len, WAYS.values()))
    widths = {g: max(len(heads[g]), *(len(texts.get((way, g), "-")) for way in WAYS)) for g in guests}
    table = ["  ".join([f"{cells[0].result.module:<{first}}", *(f"{heads[g]:<{widths[g]}}" for g in guests)])]
    for way, name in WAYS.items():
        row = [f"{name:<{first}}", *(f"{texts.get((way, g), '-'):<{widths[g]}}" for g in guests)]
        table.append("  ".join(row).rstrip())
    wrong = [cell for cell in cells if not cell.ok]
    table.append(f"{len(cells) - len(wrong)} as expected, {len(wrong)} not" + (" (marked !)" if wrong else ""))
    reasons = [cell for cell in cells if cell.result.reason and (not cell.ok or cell.happened == REFUSED)]
    return [*table, *(f"  {cell.spec.name}, {WAYS[cell.way]}: {cell.result.reason}" for cell in reasons)]
