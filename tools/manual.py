"""Write what `make docs` builds the site of: the repository's pages, a page for each command, and man pages.

The page of a command and its man page are made of what `kmlab COMMAND --help` prints. help2man writes the man page, and
man renders it once, so that a broken one ends the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer

from kmlab import __version__
from kmlab.cli.app import app

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build"
_ENVIRONMENT = {**os.environ, "COLUMNS": "100", "LC_ALL": "C.UTF-8", "MANWIDTH": "100"}


def main(build: Path) -> None:
    """Write pages, page of each command and man pages below `build`."""
    pages, scripts, manuals = (build / name for name in ("pages", "scripts", "man"))
    for folder in (pages, scripts, manuals):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write_pages(REPOSITORY, pages)
    (pages / "commands").mkdir()
    names = ["", *command_names()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        helps = dict(zip(names, pool.map(help_text, names), strict=True))
        for name, text in helps.items():
            (pages / "commands" / f"{file_name(name)}.md").write_text(command_page(name, text), "utf-8")
        (pages / "commands" / "index.md").write_text(index_page(helps), "utf-8")
        list(pool.map(lambda name: write_manual(name, helps[name], scripts, manuals), names))


def command_names() -> Iterator[str]:
    """Yield every command, those of a group as "image list", and each group."""
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        yield name
        yield from (f"{name} {inner}" for inner in getattr(command, "commands", {}))


def file_name(name: str) -> str:
    """Return the name of a command's page and man page: kmlab-image-list."""
    return "-".join(["kmlab", *name.split()])


def help_text(name: str) -> str:
    """Return what `kmlab NAME --help` prints."""
    program = "import sys; from kmlab.cli.app import main; sys.argv[0] = 'kmlab'; main()"
    return _output([sys.executable, "-c", program, *name.split(), "--help"])


def summary(text: str) -> str:
    """Return the first sentence of a help text."""
    lines = text.split("\n\n")[1].split()
    return re.split(r"(?<=[.:])\s", " ".join(lines))[0].rstrip(".:")


def command_page(name: str, text: str) -> str:
    """Return the page of one command, in Markdown."""
    return f"# kmlab {name}".rstrip() + f"\n\n{summary(text)}.\n\n```text\n{text.rstrip()}\n```\n"


def index_page(helps: dict[str, str]) -> str:
    """Return the page that links to the page of each command."""
    rows = [f"- [`kmlab {name}`]({file_name(name)}.md): {summary(text)}" for name, text in helps.items() if name]
    return "# Commands\n\n" + "\n".join(rows) + "\n"


def write_pages(repository: Path, folder: Path) -> None:
    """Copy the repository's pages and pictures; a link to any other file becomes the text that it stands on."""
    docs = repository / "docs"
    places = {path: Path(path.name.lower()) for path in repository.glob("*.md")}
    places |= {path: path.relative_to(docs) for path in docs.rglob("*") if path.suffix in (".md", ".svg")}
    places[repository / "README.md"] = Path("index.md")
    # docs/agents.md has the name that this would have.
    places[repository / "AGENTS.md"] = Path("agents-in-this-repository.md")
    places[docs / "decisions" / "README.md"] = Path("decisions/index.md")
    places[repository / "examples" / "README.md"] = Path("examples.md")
    for path, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text("utf-8")
        target.write_text(relinked(text, path, places) if path.suffix == ".md" else text, "utf-8")


def relinked(text: str, page: Path, places: dict[Path, Path]) -> str:
    """Return a page's text with its links as they must be in the site, where each file has the place in `places`."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        there = Path(os.path.normpath(page.parent / target)) if target else page
        if there not in places:
            return label
        return f"[{label}]({os.path.relpath(places[there], places[page].parent)}{anchor})"

    return re.sub(r"\[((?:[^][]|`[^`]*`)*)\]\((?!\w+:)([^)#]*)(#[^)]*)?\)", link, text)


def write_manual(name: str, text: str, scripts: Path, manuals: Path) -> None:
    """Write the man page of one command, and render it once."""
    manual = manuals / f"{file_name(name)}.1"
    options = [f"--name={summary(text)}", f"--version-string={__version__}", f"--source=kmlab {__version__}"]
    script = write_script(name, text, scripts)
    _output(["help2man", "--no-info", "--locale=C.UTF-8", *options, f"--output={manual}", str(script)])
    if "SYNOPSIS" not in _output(["man", "--warnings", "--encoding=UTF-8", "--local-file", str(manual)]):
        raise SystemExit(f"{manual}: man shows no synopsis")


def write_script(name: str, text: str, folder: Path) -> Path:
    """Write a program that prints a help text: help2man takes the title of a man page from a program's name."""
    script = folder / file_name(name)
    script.write_text(f"#!/bin/sh\ncat <<'END OF HELP'\n{text}END OF HELP\n", "utf-8")
    script.chmod(0o755)
    return script


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, env=_ENVIRONMENT, timeout=120, check=False)
    if done.returncode or done.stderr.strip():
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main(BUILD)
