"""Define a case of a torture: one way to load, use and unload a module that an ordinary run does not try."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kmlab.kernel.module.modinfo import ModInfo
from kmlab.run.torture.fuzz import FuzzTarget

UNLOAD_REFUSED, LOAD_REFUSED = 3, 4
"""Exit codes of a case's script: the module could not be unloaded; it did not load although it must."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TortureCase(NamedTuple):
    """One case."""

    name: str
    """Names it on the command line: `--case fail-12`."""
    group: str
    what: str
    """What it does, as a person reads it."""
    body: str
    """Its shell script; `load`, `exercise` and `unload` are functions of the prelude."""
    seconds: float = 0.0
    """How long it takes by design, beyond what a load and an unload take."""
    counts: bool = False
    """Its script prints `points left: K`; a K above 0 ends the group, because there is nothing more to fail."""
    keeps_output: bool = False
    """What its script prints belongs to the result."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is tortured, and what its guest offers."""

    folder: str
    """The folder in the guest that the paths start from."""
    modules: Sequence[tuple[str, ModInfo]]
    """The files and what they say of themselves, in the order of loading."""
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The words `NAME=VALUE` for insmod, by module."""
    exercise: str | None = None
    """The user's own command."""
    offers: frozenset[str] = frozenset()
    """Files of the guest that groups need: see Group.needs."""
    check: str = ""
    """A shell line before each unload: a check of the kernel's own."""
    repeat: int = 20
    seed: int = 1
    fuzz: FuzzTarget | None = None
    """The device that is fuzzed, if lab.yaml names one."""

    @property
    def last(self) -> ModInfo:
        """Return the module that is loaded last: the tortured one."""
        return self.modules[-1][1]


@dataclass(frozen=True, slots=True)
class Group:
    """A kind of torture."""

    name: str
    about: str
    cases: Callable[[Target], Iterator[TortureCase]]
    needs: str = ""
    """The file that the guest must have; empty if any guest will do."""
    needs_device: bool = False
    """Whether lab.yaml must name a device of the module."""

    def why_not(self, target: Target) -> str | None:
        """Return why this group cannot run in the guest; None if it can."""
        if self.needs_device and target.fuzz is None:
            return "lab.yaml names no device of this module (`fuzz: {device: /dev/…}`)"
        if not self.needs or self.needs in target.offers:
            return None
        return f"the guest's kernel has no {self.needs}; `kernel: debug` has it"


def script(target: Target, case: TortureCase) -> str:
    """Return the whole shell script of a case.

    It ends with 0, with one of the codes above, or with another code if the guest is at fault.
    """
    looks = "new_files" in case.body or (not target.exercise and "exercise" in case.body)
    return f"# case {case.name}\n{prelude(target, looks=looks)}\n{case.body}\nfinish"


def prelude(target: Target, *, looks: bool) -> str:
    """Return the functions that the scripts of all cases use; `looks` for those that look for the module's files."""
    needed = "; ".join(_insmod(path, target.params.get(info.name, ())) for path, info in target.modules[:-1])
    path, info = target.modules[-1]
    names = [each.name for _, each in reversed(target.modules) if _SAFE_NAME.fullmatch(each.name)]
    own = shlex.join(target.params.get(info.name, ()))
    exercise = f"sh -c {shlex.quote(target.exercise)}" if target.exercise else "touch_files"
    return _PRELUDE.format(
        folder=shlex.quote(target.folder),
        needed=needed or ":",
        note='places > "$before"' if looks else ":",
        insmod=f"insmod {shlex.quote(f'./{path}')} {own}",
        names=" ".join(names),
        module=shlex.quote(info.name),
        exercise=exercise,
        check=target.check or ":",
        unload_refused=UNLOAD_REFUSED,
        load_refused=LOAD_REFUSED,
    )


def _insmod(path: str, params: Sequence[str]) -> str:
    return f"insmod {shlex.join([f'./{path}', *params])} 2> /dev/null"


_PRELUDE = """\
cd {folder} || exit 125
export KMLAB_MODULE={module}
places() {{ printf '%s\\n' /dev/* /dev/*/* /proc/[!0-9]* /sys/kernel/debug/* | sort; }}
before=$(mktemp); {note}
new_files() {{
	places | comm -13 "$before" - | while read -r place; do
		if [ -d "$place" ]; then find "$place" -maxdepth 2 -type f; else echo "$place"; fi
	done | head -n 32
}}
load_needed() {{ {needed}; }}
load_last() {{ {insmod} "$@" 2> /dev/null; }}
load() {{ load_needed; load_last "$@"; }}
must_load() {{ load "$@" || exit {load_refused}; }}
touch_files() {{ for file in $(new_files); do timeout 2 head -c 4096 "$file"; done > /dev/null 2>&1; }}
exercise() {{ timeout -k 1 60 {exercise}; }} > /dev/null 2>&1
is_loaded() {{ grep -q "^$1 " /proc/modules; }}
unload() {{
	for name in {names}; do
		tries=0
		while is_loaded "$name" && ! rmmod "$name" 2> /dev/null; do
			tries=$((tries + 1))
			[ $tries -lt 25 ] || exit {unload_refused}
			sleep 0.2
		done
	done
}}
finish() {{ {check}; unload; rm -f "$before"; exit 0; }}
"""
