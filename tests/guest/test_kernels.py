"""Real guests of two kernels side by side: the page of modules × kernels, and ^C in the middle of it."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from kmlab.host.hypervisor import hypervisor
from tests.guest.conftest import REPOSITORY, Lab, interrupt, wait_until

EXAMPLES = REPOSITORY / "examples"
LAB = f"""\
name: t
guests:
  debian: {{image: debian-12, cpus: 2, memory: 1G}}
matrix: [default, "6.12"]
modules:
  hello: {{source: {EXAMPLES}/hello, expect: {{log: ["Hello, world."]}}}}
  larvae: {{source: {EXAMPLES}/class_create}}
  oops: {{source: {EXAMPLES}/oops, exercise: cat /proc/oops, expect: {{outcome: oops, function: null_read}}}}
"""
BOTH = ("debian", "debian@6.12")


def running(lab: Lab) -> list[str]:
    folders = [path for path in (lab.state / "labs").glob("t-*/*") if path.is_dir()]
    return sorted(folder.name for folder in folders if hypervisor.processes(folder))


def test_modules_in_two_kernels_are_one_page_with_failures_grouped_by_their_reason(lab: Lab) -> None:
    lab.write(LAB)
    answer = lab("test", "--json", code=1, timeout=1200)
    page = answer.json["grid"]
    assert [column["guest"] for column in page["columns"]] == list(BOTH)
    assert [column["kernel"].rsplit(".", 1)[0] for column in page["columns"]] == ["6.1", "6.12"]
    cells = {row["module"]: [(cell["outcome"], cell["ok"]) for cell in row["cells"]] for row in page["rows"]}
    assert cells == {
        "hello": [("pass", True), ("pass", True)],
        "larvae": [("build-failed", False), ("pass", True)],
        "oops": [("oops", True), ("oops", True)],
    }
    build, crash = page["groups"]
    assert build["sentence"] == "builds from 6.4 on: class_create() takes the name only, without THIS_MODULE"
    assert (build["modules"], build["guests"]) == (["larvae"], ["debian"])
    assert crash["guests"] == list(BOTH), "one bug has one fingerprint on both"
    assert crash["sentence"].startswith(
        "oops on every kernel: BUG: kernel NULL pointer dereference in null_read at oops.c:"
    )
    assert [(r["module"], r["guest"]) for r in answer.json["results"]] == [(m, g) for m in cells for g in BOTH]
    assert "guests side by side: " in answer.err
    assert "debian@6.12" not in running(lab), "made for the page only"


def said_hello(lab: Lab, guest: str) -> bool:
    return "Hello, world." in lab("log", guest, code=None).out


def test_cut_off_while_two_guests_work_it_leaves_a_lab_that_the_next_command_uses(lab: Lab) -> None:
    lab.write(LAB)
    words = ("run", str(EXAMPLES / "hello"), "--kernels", "matrix")
    run = lab.start(*words, "--jobs", "2", "--exercise", "sleep 1000")
    for guest in BOTH:
        wait_until(f"{guest} to say hello", partial(said_hello, lab, guest), 300)
    assert running(lab) == list(BOTH)
    code, out = interrupt(run, signal.SIGINT)
    assert code == 130, out
    assert "Traceback" not in out
    assert running(lab) == []
    results = lab(*words, "--json").json["results"]
    assert [(r["guest"], r["outcome"]) for r in results] == [(guest, "pass") for guest in BOTH]
    assert len({Path(r["artifacts"]["directory"]) for r in results}) == 2
    lab("destroy")
    assert not list((lab.state / "labs").glob("t-*"))
