"""What people expect of a project: tests that claim something, and files that GitHub, editors and hooks read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

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
