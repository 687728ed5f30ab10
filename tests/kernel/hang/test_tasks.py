"""What the tasks of a guest wait for, as its kernel answered sysrq; tests/data/tasks has real answers."""

from __future__ import annotations

from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.hang.tasks import Task, find_deadlock, lasting_deadlock, parse_cpus, parse_tasks, tasks_in
from tests.places import TEST_DATA

DATA = TEST_DATA / "tasks"
LINES = (DATA / "poll-6.1.txt").read_text().splitlines()


def test_every_task_has_its_name_its_state_and_its_stack() -> None:
    tasks = {task.name: task for task in parse_tasks(LINES)}
    assert {"systemd", "insmod"} <= set(tasks)
    waiting = tasks["insmod"]
    assert waiting.state == "D"
    sure = [(f.function, f.module) for f in waiting.frames if f.reliable]
    assert sure[:6] == [
        ("__schedule", None),
        ("schedule", None),
        ("schedule_timeout", None),
        ("msleep", None),
        ("poll_forever", "poll"),
        ("poll_init", "poll"),
    ]


def test_the_task_within_the_module_is_the_one_that_matters() -> None:
    first, *_ = tasks_in(parse_tasks(LINES), frozenset({"poll"}))
    assert first.name == "insmod"


def test_who_loads_the_module_comes_before_a_thread_of_its_own() -> None:
    frame = Frame("f", 1, 2, "m", reliable=True, exact=False)
    guess = frame._replace(reliable=False)
    thread, loader = Task("worker", 5, "S", (frame,)), Task("insmod", 6, "D", (frame,))
    left, idle = Task("rmmod", 7, "D", ()), Task("other", 8, "S", (guess,))
    assert tasks_in([idle, thread, left, loader], frozenset({"m"})) == [loader, left, thread]
    assert tasks_in([idle], frozenset({"m"})) == []


def test_a_cpu_that_is_not_idle_has_its_stack() -> None:
    (stack,) = parse_cpus((DATA / "busy-work-6.1.txt").read_text().splitlines())
    sure = [(f.function, f.module) for f in stack if f.reliable]
    at = sure.index(("touch_softlockup_watchdog", None))
    assert sure[at + 1 : at + 4] == [("busy_work", "hangs"), ("process_one_work", None), ("worker_thread", None)]
    assert sure[-1] == ("ret_from_fork", None)


def test_an_answer_cut_off_anywhere_is_read() -> None:
    text = "\n".join(LINES)
    for end in range(0, len(text), 97):
        first, rest = parse_tasks(text[:end].splitlines()), parse_tasks(text[end:].splitlines())
        # The task that the cut goes through may be lost, and no other.
        assert len(parse_tasks(LINES)) - 1 <= len(first) + len(rest) <= len(parse_tasks(LINES))


def blocked(name: str, pid: int, *functions: str) -> list[str]:
    """A task of sysrq's answer: `f` is the kernel's, `f@m` the module's."""
    frames = (f" {f.partition('@')[0]}+0x1/0x20" + (f" [{f.partition('@')[2]}]" if "@" in f else "") for f in functions)
    return [f"task:{name:<15} state:D stack:0     pid:{pid:<5} ppid:2      flags:0x00004000", "Call Trace:", *frames]


def test_two_tasks_that_hold_what_the_other_wants_are_a_deadlock() -> None:
    lines = [
        *blocked("pump", 31, "__schedule", "schedule", "__mutex_lock.constprop.0", "take_both@gate", "kthread"),
        *blocked("rmmod", 32, "__schedule", "schedule", "wait_for_completion", "kthread_stop", "gate_exit@gate"),
        *blocked("other", 33, "__schedule", "schedule", "mutex_lock", "elsewhere@another"),
    ]
    crash = find_deadlock(parse_tasks(lines), frozenset({"gate"}))
    assert crash is not None
    assert (crash.kind, crash.class_, crash.function, crash.task) == ("hang", "deadlock", "gate_exit", "rmmod")
    assert crash.title == "deadlock in gate_exit and take_both"
    assert crash.text == "rmmod waits for a thread to end in gate_exit and pump waits for a mutex in take_both"
    assert [section.name for section in crash.sections] == ["task pump"]


def test_a_task_that_waits_alone_is_no_deadlock() -> None:
    alone = blocked("rmmod", 32, "__schedule", "schedule", "wait_for_completion", "kthread_stop", "gate_exit@gate")
    idle = blocked("pump", 31, "__schedule", "schedule", "schedule_timeout", "gate_nap@gate", "kthread")
    assert find_deadlock(parse_tasks(alone), frozenset({"gate"})) is None
    assert find_deadlock(parse_tasks([*alone, *idle]), frozenset({"gate"})) is None


def test_a_deadlock_is_one_only_if_the_tasks_wait_at_the_same_places_later() -> None:
    first = blocked("pump", 31, "__schedule", "schedule", "__mutex_lock.constprop.0", "take_both@gate", "kthread")
    second = blocked("sink", 32, "__schedule", "schedule", "__mutex_lock.constprop.0", "take_other@gate", "kthread")
    moved = blocked("sink", 32, "__schedule", "schedule", "__mutex_lock.constprop.0", "take_third@gate", "kthread")
    own, tasks = frozenset({"gate"}), parse_tasks([*first, *second])
    crash = lasting_deadlock(tasks, tasks, own)
    assert crash and crash.text == "pump waits for a mutex in take_both and sink waits for a mutex in take_other"
    assert lasting_deadlock(tasks, parse_tasks([*first, *moved]), own) is None
    assert lasting_deadlock(tasks, parse_tasks(first), own) is None
