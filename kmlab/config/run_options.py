"""Define the options of a run that are not in lab.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kmlab.common.events import AskPassphrase
from kmlab.config.lab import GuestSpec, Param

AUTO, NO_KEY, LAB_KEY, WRONG_KEY, ALTERED, STRIPPED = "auto", "no", "mok", "wrong-key", "altered", "stripped"
"""What a run signs with, instead of a key file: the lab's key if the guest has Secure Boot; nothing; the lab's key
in any guest; a new key that no guest trusts; the lab's key, and then one byte of the module is changed; the lab's key,
and then the module is stripped."""


def signs(key: str, spec: GuestSpec) -> bool:
    """Return whether a run in this guest signs the module. `key` is one of the words above, or a key file."""
    return key != NO_KEY and (key != AUTO or spec.secure_boot)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorturePlan:
    """What a torture tries: see kmlab/run/torture."""

    groups: tuple[str, ...] = ()
    """Only these kinds; empty for all."""
    only: str | None = None
    """Only this case."""
    done: frozenset[str] = frozenset()
    """Cases that earlier runs of the same torture have tried."""
    repeat: int = 20
    """How often the module is loaded and unloaded in a row."""
    seed: int = 1
    careful: bool = False
    """Whether fuzzing prints each call before it makes it."""
    program: str = ""
    """The C program that a case of fuzzing runs instead of drawing its calls: it makes those of an earlier run."""
    until: float | None = None
    """No case begins after this time of the monotonic clock; None for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that the user gave for one run."""

    fresh: bool = False
    """Restore the guest first."""
    unused: bool = False
    """Restore the guest first if a module has run in it."""
    keep: bool = False
    root: Path | None = None
    """Send this folder, which holds the module's."""
    make: Mapping[str, str] = field(default_factory=dict)
    """Variables of make, in addition to the module's."""
    params: Mapping[str, Param] = field(default_factory=dict)
    exercise: str | None = None
    timeout: float | None = None
    sign: str = AUTO
    """One of the words above, or a key file."""
    ask: AskPassphrase | None = field(default=None, repr=False, compare=False)
    """Asks for the passphrase of an encrypted key."""
    steps: tuple[str, ...] = ("build", "load", "exercise", "unload")
    """The steps to run; the sync always comes first."""
    coverage: bool = False
    """Count which lines of the module run."""
    torture: TorturePlan | None = None
    """Torture the module instead of running it once."""
    siblings: int = 1
    """The number of runs of the same command. Their folders are kept until it ends, even beyond `keep_runs`."""
    outdated: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    """Returns whether the source has changed since the run began. It is called until the module's code runs."""
