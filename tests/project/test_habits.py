"""What people expect of a project: tests that claim something, and files that GitHub, editors and hooks read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import yaml

from kmlab.config import catalog
from tests.places import REPOSITORY

# --- tests ---------------------------------------------------------------------------------------------------------


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function in tests/ with the file that it is in."""
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield str(path.relative_to(REPOSITORY)), node


def called(function: ast.FunctionDef) -> set[str]:
    """The last words of what a function calls: `check` for `documents.check(...)`."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {ast.unparse(each).split(".")[-1] for each in calls if isinstance(each, ast.Name | ast.Attribute)}


def test_every_test_claims_something() -> None:
    """It asserts, expects an exception, or calls a helper in tests/ that does."""
    every = list(functions())
    claims = {"raises", "fail"}
    asserting = {f.name for _, f in every if any(isinstance(node, ast.Assert) for node in ast.walk(f))}
    grown = asserting | claims
    while claims != grown:
        claims = grown
        grown = claims | {f.name for _, f in every if called(f) & claims and not f.name.startswith("test_")}
    silent = [
        f"{file}: {f.name}" for file, f in every if f.name.startswith("test_") and not {f.name, *called(f)} & claims
    ]
    assert silent == []


# --- files that others read ----------------------------------------------------------------------------------------


def test_every_hook_runs_a_tool_of_the_environment_and_downloads_nothing() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for each in config["repos"] for hook in each["hooks"]]
    assert {each["repo"] for each in config["repos"]} == {"local"}
    assert {hook["id"] for hook in hooks} == {"ruff-format", "ruff", "mypy", "codespell", "house"}
    for hook in hooks:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        for name in re.findall(r"\btests/\S+", hook["entry"]):
            assert (REPOSITORY / name).exists(), name


def test_the_workflow_runs_targets_of_the_makefile_and_can_only_read() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE))
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert {"check", "test", "docs"} == set(made) <= targets
    assert workflow["permissions"] == {"contents": "read"}
    assert any("99-kvm4all.rules" in line for line in lines)


def test_a_bug_is_told_with_the_version_and_what_doctor_says() -> None:
    form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8"))
    fields = {part["id"]: part for part in form["body"] if "id" in part}
    assert "kmlab --version" in fields["version"]["attributes"]["description"]
    assert "kmlab doctor --json" in fields["doctor"]["attributes"]["description"]
    assert all(fields[name]["validations"]["required"] for name in ("version", "doctor"))


def test_contributing_names_tests_that_there_are() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    names = re.findall(r"-k ([\w-]+)", text)
    assert names
    every = [*(function.name for _, function in functions()), *(p.stem for p in REPOSITORY.glob("tests/data/oops/*"))]
    assert [name for name in names if not any(name in each for each in every)] == []


def test_every_decision_has_its_row_and_the_parts_of_the_template() -> None:
    folder = REPOSITORY / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    template = re.findall(r"^## (.+)$", index.split("```")[1], re.MULTILINE)
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert sorted(re.findall(r"^\| \[.+?\]\((.+?)\)", index, re.MULTILINE)) == [page.name for page in pages]
    for page in pages:
        text = page.read_text("utf-8")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == template, page.name
        assert re.search(r"^Date: \d{4}-\d{2}$", text, re.MULTILINE), page.name


def test_the_hooks_check_what_make_check_checks() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    config = (REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8")
    for word in ("ruff format", "ruff check", "mypy", "pytest -q tests/project/test_house.py"):
        assert word in makefile and word in config, word


def test_the_workflow_of_the_selftest_has_the_commands_and_images_that_exist() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "selftest.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    assert set(job["strategy"]["matrix"]["image"]) <= set(catalog.image_names())
    lines = [step["run"] for step in job["steps"] if "run" in step]
    assert lines.index(".venv/bin/kmlab doctor --fix") > lines.index("sh tools/setup.sh --run-only")
    (tried,) = [line for line in lines if "selftest --" in line]
    assert "--accel kvm" in tried, "without KVM, a job must fail at once and not crawl"


def test_a_host_that_was_tried_is_told_with_the_page_of_the_selftest() -> None:
    form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "host.yml").read_text("utf-8"))
    fields = {part["id"]: part for part in form["body"]}
    assert "kmlab selftest --report" in fields["selftest"]["attributes"]["description"]
    assert fields["selftest"]["validations"]["required"]
