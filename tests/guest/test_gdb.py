"""gdb on a real guest: before a module's init, after an oops, and while a module hangs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.guest.conftest import REPOSITORY, Lab, wait_until


def test_a_breakpoint_in_a_module_s_init_stops_before_it_has_run(lab: Lab, hello: Path) -> None:
    commands = ("break hello_init", "continue", "print __this_module.name", "info line", "bt 1")
    batch = [word for line in commands for word in ("--batch", line)]
    answer = lab("gdb", str(hello), "--at", "load", *batch, "--json").json
    assert answer["modules"] == ["hello"]
    assert "hello is in place, and its init function has not run yet" in answer["output"]
    assert "hello_init () at" in answer["output"] and "hello.c:8" in answer["output"]
    assert '= "hello"' in answer["output"]
    wait_until("the module's message", lambda: "Hello, world." in lab("log").out)
    assert lab("status", "--json").json["guests"][0]["state"] == "dirty"


def test_the_module_s_symbols_are_there_after_an_oops(lab: Lab, tmp_path: Path) -> None:
    source = Path(shutil.copytree(REPOSITORY / "examples" / "oops", tmp_path / "oops"))
    lab("load", str(source), code=None)
    lab("ssh", "--", "cat", "/proc/oops", code=None)
    assert "NULL pointer dereference" in lab("log").out
    answer = lab("gdb", "--batch", "info line null_read", "--batch", "info symbol do_init_module", "--json").json
    assert answer["modules"] == ["oops"]
    assert "oops.c" in answer["output"] and "do_init_module in section .text" in answer["output"]
    assert lab("ssh", "--json", "--", "echo", "alive").json["output"] == "alive\n", "the guest goes on"


def test_gdb_sees_where_a_module_hangs(lab: Lab, tmp_path: Path) -> None:
    source = Path(shutil.copytree(REPOSITORY / "examples" / "hang", tmp_path / "hang"))
    lab("up")
    process = lab.start("run", str(source), "--timeout", "10m")
    try:

        def stuck() -> bool:
            answer = lab("gdb", "--batch", "thread apply all info symbol $pc", "--json", code=None)
            return answer.code == 0 and "spin" in answer.json["output"]

        wait_until("gdb to see the loop", stuck, 300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)


def test_an_editor_s_compiler_finds_the_guest_s_headers_on_this_host(lab: Lab, hello: Path) -> None:
    lab("build", str(hello), "--compile-commands")
    listed = json.loads((hello / "compile_commands.json").read_text())
    (entry,) = [each for each in listed if each["file"].endswith("/hello.c")]
    assert entry["file"] == str(hello / "hello.c")
    arguments = [word for word in entry["arguments"][1:] if word != "-Wno-unknown-warning-option"]
    argv = ["gcc", "-fsyntax-only", "-w", *arguments]
    done = subprocess.run(argv, cwd=entry["directory"], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
