"""kmlab watch on a real guest: saves as an editor makes them, a verdict for each, a guest left for the next command."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import Lab

PATIENCE = 300.0


class Watch:
    """kmlab watch --json in the background, its verdicts read as they come."""

    def __init__(self, lab: Lab, *words: str) -> None:
        self.process = subprocess.Popen(
            lab.command("watch", "--json", *words),
            cwd=lab.file.parent,
            env=lab.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def verdict(self) -> Any:
        (result,) = json.loads(self._lines.get(timeout=PATIENCE))["results"]
        return result

    def interrupt(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def watch(lab: Lab, hello: Path) -> Iterator[Watch]:
    made = Watch(lab, str(hello), "--exec", 'echo "$KMLAB_OUTCOME $KMLAB_FUNCTION" >> told')
    yield made
    if made.process.poll() is None:
        made.interrupt()


def save(place: Path, text: str) -> None:
    """As vim does: what was there is put aside, a new file takes its name, and the old one goes."""
    aside = place.with_name(f"{place.name}~")
    place.rename(aside)
    place.write_text(text)
    aside.unlink()


def test_each_save_has_its_verdict_until_it_is_interrupted(lab: Lab, hello: Path, watch: Watch, tmp_path: Path) -> None:
    source = hello / "hello.c"
    well = source.read_text()
    first = watch.verdict()
    assert first["outcome"] == "pass"

    save(source, f"{well}\nint broken(void) {{ return 1 }}\n")
    second = watch.verdict()
    assert second["outcome"] == "build-failed"
    error = next(d for d in second["diagnostics"] if d["severity"] == "error")
    assert (error["file"], error["line"]) == ("hello.c", well.count("\n") + 2)

    marked = well.replace(
        "static int __init hello_init(void)\n{\n", "static int __init hello_init(void)\n{\n\tBUG();\n"
    )
    assert marked != well
    save(source, marked)
    third = watch.verdict()
    (crash,) = third["crashes"]
    assert (third["outcome"], crash["function"], crash["file"]) == ("oops", "hello_init", "hello.c")
    assert marked.splitlines()[crash["line"] - 1] == "\tBUG();"

    save(source, well)
    fourth = watch.verdict()
    assert fourth["outcome"] == "pass" and fourth["taint"]["before"] == [], "on a restored guest"
    assert {v["guest"] for v in (first, second, third, fourth)} == {"debian"}

    record = lab("status", "--json").json["guests"][0]
    assert watch.interrupt() == 130
    assert (tmp_path / "told").read_text().split("\n") == ["pass ", "build-failed ", "oops hello_init", "pass ", ""]
    after = lab("status", "--json").json["guests"][0]
    assert after["record"]["pid"] == record["record"]["pid"] and after["state"] == "clean"
    assert lab("ssh", "--", "echo", "usable").out == "usable\n"
