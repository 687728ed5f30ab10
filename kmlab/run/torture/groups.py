"""List the kinds of torture. A new one is a function that yields its cases, and a row of GROUPS."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from kmlab.run.torture.fuzz import ROUND_SECONDS
from kmlab.run.torture.param_edges import edges
from kmlab.run.torture.torture_case import Group, Target, TortureCase

FAIL_NTH = "/sys/kernel/debug/fail_nth_in_init"
"""guests/kernel/append/lib/fault-inject.c"""
FAILSLAB = "/sys/kernel/debug/failslab"
"""Documentation/fault-injection/fault-injection.rst"""
SECOND_CPU = "/sys/devices/system/cpu/cpu1/online"
_MOST_POINTS = 1000
_ALL_KINDS = (
    "for kind in failslab fail_page_alloc; do dir=/sys/kernel/debug/$kind; echo N > $dir/ignore-gfp-wait; "
    "echo 0 > $dir/min-order; echo N > $dir/ignore-gfp-highmem; echo 0 > $dir/verbose_ratelimit_interval_ms; done "
    "2> /dev/null"
)
"""Let also those allocations fail that may wait for memory, of any size; report each."""


def _cycles(target: Target) -> Iterator[TortureCase]:
    body = f"for round in $(seq {target.repeat}); do must_load; unload; done"
    yield TortureCase("cycle", "cycle", f"load and unload {target.repeat} times", body, target.repeat * 0.3)


def _params(target: Target) -> Iterator[TortureCase]:
    for param in target.last.params:
        for edge in edges(param, target.seed):
            word = shlex.quote(f"{param.name}={edge.value}")
            shown = edge.value if len(edge.value) <= 24 else f"{len(edge.value)} characters"
            what = f"load with {param.name}={shown}"
            yield TortureCase(f"param-{param.name}-{edge.name}", "params", what, f"load {word} && exercise")


def _faults(target: Target) -> Iterator[TortureCase]:
    for point in range(1, _MOST_POINTS + 1):
        body = (
            f"{_ALL_KINDS}\nload_needed; echo {point} > {FAIL_NTH}; load_last; "
            f'echo "points left: $(cat {FAIL_NTH})"; echo 0 > {FAIL_NTH}'
        )
        what = f"init, while its call number {point} that can fail does fail"
        yield TortureCase(f"fail-{point}", "faults", what, body, counts=True)


def _memory(target: Target) -> Iterator[TortureCase]:
    switch = f"cd {FAILSLAB} && echo Y > task-filter && echo 1 > interval && echo -1 > times && echo 0 > verbose"
    body = (
        f"must_load; {_ALL_KINDS}; ({switch}; echo 10 > probability)\n"
        "for round in 1 2 3; do (echo 1 > /proc/self/make-it-fail; exercise); done\n"
        f"echo 0 > {FAILSLAB}/probability"
    )
    yield TortureCase("short-memory", "memory", "exercise, while one allocation in ten fails", body, 3)


def _open_files(target: Target) -> Iterator[TortureCase]:
    body = """\
must_load
for file in $(new_files); do
	(exec 3< "$file"; sleep 1; timeout 1 head -c 4096 <&3 > /dev/null) 2> /dev/null &
done
sleep 0.3; rmmod $KMLAB_MODULE 2> /dev/null; sleep 2; kill $(jobs -p) 2> /dev/null; wait"""
    yield TortureCase("unload-open", "unload", "unload while its files are open, then read them", body, 4)
    body = """\
must_load; flag=$(mktemp)
(while [ -e $flag ]; do exercise; sleep 0.05; done) &
for round in 1 2 3 4 5 6 7 8; do sleep 0.1; rmmod $KMLAB_MODULE 2> /dev/null; load; done
rm $flag; wait"""
    yield TortureCase("unload-busy", "unload", "unload and load again while the exercise runs", body, 4)


def _parallel(target: Target) -> Iterator[TortureCase]:
    body = """\
for round in 1 2 3; do for copy in 1 2 3 4 5 6; do load & done; wait; unload; done
for copy in 1 2 3; do (for round in 1 2 3; do load; rmmod $KMLAB_MODULE 2> /dev/null; done) & done
wait"""
    yield TortureCase("parallel-loads", "parallel", "several loads and unloads at the same time", body, 3)
    body = "must_load; for copy in 1 2 3 4; do exercise & done; wait"
    yield TortureCase("parallel-exercises", "parallel", "four exercises at the same time", body, 2)


def _signals(target: Target) -> Iterator[TortureCase]:
    body = f"""\
must_load; command={_interrupted(target)}
for pause in 0 0.01 0.03 0.1 0.3; do for signal in INT TERM KILL; do
	setsid sh -c "$command" > /dev/null 2>&1 & job=$!; sleep $pause
	kill -s $signal -- -$job 2> /dev/null; sleep 0.05
	kill -s KILL -- -$job 2> /dev/null; wait $job 2> /dev/null
done; done"""
    yield TortureCase("signals", "signals", "signals in the middle of the exercise", body, 5)


def _interrupted(target: Target) -> str:
    """Return a word of the shell: the command that is to be interrupted."""
    if target.exercise:
        return shlex.quote(target.exercise)
    return "$(for file in $(new_files); do echo \"head -c 4096 '$file';\"; done)"


def _cpus(target: Target) -> Iterator[TortureCase]:
    body = f"""\
must_load
(for round in 1 2 3; do exercise; done) &
for state in 0 1 0 1; do echo $state > {SECOND_CPU}; sleep 0.2; done
wait; echo 1 > {SECOND_CPU}"""
    yield TortureCase("cpu-offline", "cpus", "take a CPU away and give it back, while the exercise runs", body, 5)


def _devices(target: Target) -> Iterator[TortureCase]:
    body = """\
must_load
for link in /sys/bus/*/drivers/*/module; do
	[ "$(basename "$(readlink -f "$link")")" = "$KMLAB_MODULE" ] || continue
	driver=${link%/module}
	for device in "$driver"/*; do
		name=${device##*/}
		[ -L "$device" ] && [ "$name" != module ] || continue
		exercise & sleep 0.1
		for round in 1 2 3; do echo "$name" > "$driver/unbind"; echo "$name" > "$driver/bind"; done 2> /dev/null
		wait
	done
done"""
    yield TortureCase("unbind", "devices", "take its devices away and give them back, while the exercise runs", body, 2)


def _fuzz(target: Target) -> Iterator[TortureCase]:
    fuzz = target.fuzz
    for number in range(1, fuzz.rounds + 1 if fuzz else 1):
        assert fuzz is not None
        body = f"must_load; {fuzz.command(target.seed, number)}"
        what = f"call {fuzz.device} with bad arguments, round {number}"
        yield TortureCase(f"fuzz-{number}", "fuzz", what, body, ROUND_SECONDS, keeps_output=True)


GROUPS = (
    Group("cycle", "load and unload again and again", _cycles),
    Group("params", "each parameter at the edges of its type", _params),
    Group("faults", "each call of init that can fail fails once, in order", _faults, needs=FAIL_NTH),
    Group("memory", "the exercise with too little memory", _memory, needs=FAILSLAB),
    Group("unload", "unload while the module is in use", _open_files),
    Group("parallel", "several loads, unloads and exercises at the same time", _parallel),
    Group("signals", "signals in the middle of system calls", _signals),
    Group("cpus", "CPUs that go and come", _cpus, needs=SECOND_CPU),
    Group("devices", "devices that go and come", _devices),
    Group("fuzz", "calls of its device with bad arguments", _fuzz, needs_device=True),
)
OFFERS = (FAIL_NTH, FAILSLAB, SECOND_CPU)
"""Files of a guest that groups need."""
