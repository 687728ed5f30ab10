"""Say which shard this machine is, from `--shard` or from the variables of a CI server or a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from kmlab.common.errors import ConfigError
from kmlab.config.yaml.reader import quoted

_MOST = 10_000


class Shard(NamedTuple):
    """One of several machines that share the runs of a command."""

    number: int
    """From 1."""
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


class _Variables(NamedTuple):
    """How a service numbers parallel jobs, in environment variables."""

    service: str
    number: str
    total: str
    first: int | str
    """The number of the first job, or the variable that has it."""
    step: str | None = None
    """The variable that has the distance of two numbers."""


SERVICES = (
    # GitHub has no variables for this: the action sets these from strategy.job-index and strategy.job-total. A
    # Kubernetes Job sets KMLAB_SHARDS itself, because its pods are only told their own number.
    _Variables("KMLAB_SHARD", "KMLAB_SHARD_INDEX", "KMLAB_SHARDS", 0),
    # https://docs.gitlab.com/ci/variables/predefined_variables/
    _Variables("GitLab", "CI_NODE_INDEX", "CI_NODE_TOTAL", 1),
    # https://buildkite.com/docs/pipelines/configure/environment-variables
    _Variables("Buildkite", "BUILDKITE_PARALLEL_JOB", "BUILDKITE_PARALLEL_JOB_COUNT", 0),
    # https://slurm.schedmd.com/job_array.html
    _Variables(
        "Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"
    ),
    # https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
    _Variables("Kubernetes", "JOB_COMPLETION_INDEX", "KMLAB_SHARDS", 0),
)


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Return the shard of `2/8`, or of `auto` with these variables. Raise ConfigError if there is none."""
    if text == "auto":
        return _from_variables(environment)
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= _MOST:
        raise ConfigError(f"--shard {quoted(text)} is not one of several", "for example --shard 2/8, or --shard auto")
    return Shard(int(match[1]), int(match[2]))


def _from_variables(environment: Mapping[str, str]) -> Shard:
    for service in SERVICES:
        if service.number in environment and service.total in environment:
            return _shard_of(service, environment)
    if "JOB_COMPLETION_INDEX" in environment or "KMLAB_SHARD_INDEX" in environment:
        raise ConfigError("--shard auto: KMLAB_SHARDS is not set", "set it to the number of jobs")
    known = ", ".join(f"{service.number} ({service.service})" for service in SERVICES)
    raise ConfigError(f"--shard auto finds no variables of a CI server: {known}", "give the shard: --shard 2/8")


def _shard_of(service: _Variables, environment: Mapping[str, str]) -> Shard:
    first = str(service.first) if isinstance(service.first, int) else environment.get(service.first, "0")
    step = environment.get(service.step, "1") if service.step else "1"
    words = [environment[service.number], environment[service.total], first, step]
    if not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) for word in words):
        raise ConfigError(f"--shard auto: {service.number} or {service.total} is not a number", "give --shard 2/8")
    number, count, begin, distance = map(int, words)
    index, rest = divmod(number - begin, max(distance, 1))
    if rest or not 0 <= index < count <= _MOST:
        raise ConfigError(
            f"--shard auto: {service.number}={number} is not one of {count} jobs with numbers in a row",
            "number the jobs without gaps",
        )
    return Shard(index + 1, count)
