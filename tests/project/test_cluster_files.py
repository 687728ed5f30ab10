"""The files for CI servers and clusters: their command lines are ones that kmlab takes, and nothing runs as root."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmlab.host.process import host_packages
from tests.pages import KMLAB
from tests.places import REPOSITORY

ACTION = REPOSITORY / ".github" / "actions" / "kmlab" / "action.yml"
FOLDER = REPOSITORY / "cluster"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def shell_texts() -> Iterator[tuple[str, str]]:
    """Yield each text that a shell of such a file runs, with the name of the file."""
    for step in read(ACTION)["runs"]["steps"]:
        if "run" in step:
            yield ACTION.name, step["run"]
    for job in read(FOLDER / "gitlab.yml").values():
        yield "gitlab.yml", "\n".join(job["script"])
    (container,) = read(FOLDER / "kubernetes-job.yaml")["spec"]["template"]["spec"]["containers"]
    yield "kubernetes-job.yaml", "\n".join(container["args"])
    yield "slurm.sh", (FOLDER / "slurm.sh").read_text("utf-8")


def test_each_shell_text_is_correct_and_each_kmlab_line_is_one_that_the_program_takes() -> None:
    tried = set()
    for name, text in shell_texts():
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = words[1:] if words[:1] == ["exec"] else words
            if words[:1] == ["kmlab"]:
                rest = [word for word in words[2:] if word not in ("$@", "$ARGUMENTS")]
                KMLAB.commands[words[1]].make_context(words[1], rest)
                tried.add((name, words[1]))
    assert tried == {
        *(("action.yml", word) for word in ("doctor", "test")),
        *(("gitlab.yml", word) for word in ("test", "merge")),
        *((name, "test") for name in ("kubernetes-job.yaml", "slurm.sh")),
    }


@pytest.mark.parametrize("path", [ACTION, FOLDER / "Containerfile"], ids=lambda path: str(path.name))
def test_the_packages_are_those_of_the_table(path: Path) -> None:
    text = path.read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"apt-get install (.*?)(?:&&|\n)", text)
    named = {word for word in line.split() if not word.startswith("-")}
    wanted = {
        row.packages["apt-get"] for row in host_packages.table() if row.use == "run" and row.arch in ("any", "x86_64")
    }
    assert wanted - {"-"} <= named


def test_nothing_runs_as_root() -> None:
    lines = (FOLDER / "Containerfile").read_text("utf-8").splitlines()
    assert lines.index("USER kmlab") > max(n for n, line in enumerate(lines) if line.startswith("RUN "))
    pod = read(FOLDER / "kubernetes-job.yaml")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_a_job_of_kubernetes_tells_its_pods_how_many_they_are() -> None:
    spec = read(FOLDER / "kubernetes-job.yaml")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert int(told["KMLAB_SHARDS"]) == spec["completions"] == spec["parallelism"]


def test_the_action_takes_its_inputs_through_the_environment_only() -> None:
    for step in read(ACTION)["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an expression in a script is code of whoever chose its value"
