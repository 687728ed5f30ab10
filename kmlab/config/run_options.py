"""What a person asks of a run beyond lab.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kmlab.common.events import AskPassphrase
from kmlab.config.lab import GuestSpec, Param

AUTO, NO_KEY, LAB_KEY, WRONG_KEY, ALTERED, STRIPPED = "auto", "no", "mok", "wrong-key", "altered", "stripped"
"""What a run signs with, instead of a key's file: the lab's key where the guest has Secure Boot; nothing; the lab's key
in any guest; a key that no guest knows, made for this run; the lab's key, and then one byte is changed; the lab's key,
and then the module is stripped."""


def signs(wanted: str, spec: GuestSpec) -> bool:
    """Whether a run in this guest signs at all. `wanted` is one of these words, or the file of a key."""
    return wanted != NO_KEY and (wanted != AUTO or spec.secure_boot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person asked of this run beyond lab.yaml."""

    fresh: bool = False
    """Restore the guest first."""
    unused: bool = False
    """Restore the guest first if a module was run in it."""
    keep: bool = False
    params: Mapping[str, Param] = field(default_factory=dict)
    exercise: str | None = None
    timeout: float | None = None
    sign: str = AUTO
    """One of the words above, or the file of a key."""
    ask: AskPassphrase | None = field(default=None, repr=False, compare=False)
    """Asks for the passphrase of an encrypted key."""
    steps: tuple[str, ...] = ("build", "load", "exercise", "unload")
    """Which of them; syncing comes before all."""
    siblings: int = 1
    """Runs of the same command: their folders stay to its end, whatever `keep_runs` is."""
    outdated: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    """Whether the source has changed since the run began; asked until something of the module runs."""
