"""The pytest plugin, in a run of pytest of its own, on a real guest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.guest.conftest import REPOSITORY, Lab

TESTS = """\
def test_passes(kmlab_run, guest):
    result = kmlab_run("hello", fresh=True)
    assert [record.text for record in result.log][-2:] == ["Hello, world.", "Goodbye, world."]
    assert guest.execute("uname -r").output.strip() == result.kernel

def test_fails(kmlab_run):
    kmlab_run("oops", exercise="cat /proc/oops")

def test_passes_after_an_oops(kmlab_run):
    kmlab_run("hello")
"""


def test_a_crash_is_a_failed_test_with_its_source_line(lab: Lab, hello: Path, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "examples" / "oops", tmp_path / "oops")
    (tmp_path / "test_modules.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    argv = [
        "-m",
        "pytest",
        "-p",
        "kmlab.integrations.pytest_plugin",
        "-p",
        "xdist",
        "-n",
        "1",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run(
        [sys.executable, *argv, str(tmp_path)],
        cwd=tmp_path,
        env={**lab.environment, "PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "RunFailed: OOPS  oops on debian-gw0" in ran.stdout
    marked = [line for line in ran.stdout.splitlines() if line.startswith("E       ") and ">   27 " in line]
    assert marked and all("found->value" in line for line in marked)
    assert list(lab.state.glob("labs/*/debian-gw0/guest.json")) == [], "the worker's guest is stopped"
