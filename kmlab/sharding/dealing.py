"""Deal the runs of a command to shards, the same way on each machine: by base, and by the durations of earlier runs.

Rows with the same base go to the same shard, so that no two machines bake the same base. Only if there are fewer bases
than shards, several shards share a base. Within that, the longest work goes to the shard with the least
(https://en.wikipedia.org/wiki/Longest-processing-time-first_scheduling).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from kmlab.config.lab import GuestSpec
from kmlab.run.parallel import Job

T = TypeVar("T")
_UNKNOWN = 10.0
"""Seconds of a run if no duration at all is known."""
_BASE = 60.0
"""Seconds that a machine needs for a base in addition to the runs."""


class RowName(NamedTuple):
    """What names a row of a plan on every machine."""

    module: str
    guest: str


def row_of(job: Job) -> RowName:
    return RowName(job.module.name, job.spec.name)


def deal(planned: Sequence[Job], count: int, durations: Mapping[RowName, float]) -> list[list[Job]]:
    """Return the rows of each of `count` shards, each row once, in the order of the plan."""
    otherwise = statistics.median(durations.values()) if durations else _UNKNOWN
    seconds = {row_of(job): durations.get(row_of(job), otherwise) for job in planned}
    groups: dict[object, list[Job]] = {}
    for job in planned:
        groups.setdefault(_base_of(job.spec), []).append(job)
    packs = [_Pack(jobs, sum(seconds[row_of(job)] for job in jobs)) for jobs in groups.values()]
    if len(packs) >= count:
        bins = _balance([(pack, _BASE + pack.seconds) for pack in packs], count)
        dealt = [[job for pack in each for job in pack.jobs] for each in bins]
    else:
        dealt = []
        for pack, shards in zip(packs, _shares(packs, count), strict=True):
            dealt += _balance([(job, seconds[row_of(job)]) for job in pack.jobs], shards)
    order = {row_of(job): number for number, job in enumerate(planned)}
    return [sorted(jobs, key=lambda job: order[row_of(job)]) for jobs in [*dealt, *([] for _ in range(count))][:count]]


class _Pack(NamedTuple):
    jobs: list[Job]
    seconds: float


def _base_of(spec: GuestSpec) -> object:
    """Return what decides which base a guest has; memory, CPUs, network and the like do not."""
    return (spec.image, spec.kernel, spec.config, spec.recipe, tuple(sorted(spec.packages)))


def _shares(packs: Sequence[_Pack], count: int) -> list[int]:
    """Return how many shards each of fewer packs gets: at least one, and no more than it has rows."""
    shares = [1] * len(packs)
    for _ in range(count - len(packs)):
        open_packs = [n for n, pack in enumerate(packs) if shares[n] < len(pack.jobs)]
        if not open_packs:
            break
        shares[max(open_packs, key=lambda n: (packs[n].seconds / shares[n], -n))] += 1
    return shares


def _balance(things: Sequence[tuple[T, float]], count: int) -> list[list[T]]:
    """Deal things to bins: the longest first, each to the bin with the least. Equal ones stay in their order."""
    bins: list[list[T]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for thing, weight in sorted(things, key=lambda each: -each[1]):
        lightest = min(range(count), key=lambda n: (loads[n], len(bins[n])))
        bins[lightest].append(thing)
        loads[lightest] += weight
    return bins
