"""The pages, and what stands on them: blocks, sections, tables; the commands that they tell of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kmlab.cli.app import app
from tests.places import REPOSITORY

PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    REPOSITORY / "examples" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").glob("*/README.md")),
]
INTERFACE = REPOSITORY / "docs" / "interface.md"
LAB_YAML = REPOSITORY / "docs" / "lab-yaml.md"
COMMON = {
    *("--lab", "--json", "--compact", "--connect", "--verbose", "-v", "--debug"),
    *("--image", "--kernel", "--secure-boot", "--memory", "--cpus"),
}
KMLAB: Any = typer.main.get_command(app)

ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next of its level or a higher one."""
    text = page.read_text("utf-8")
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{page.name} has no heading '{heading}'"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text, without their headings."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        if re.fullmatch(r"[|-]+", line.replace(" ", "")):
            found.pop()
        else:
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, those of a group as "image list"."""
    for name, command in KMLAB.commands.items():
        for inner, below in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", below
        if not hasattr(command, "commands"):
            yield name, command


def options(command: Any) -> set[str]:
    return {word for param in command.params for word in param.opts if word.startswith("-")}
