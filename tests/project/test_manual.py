"""`make docs`: every command has a page of what its --help prints, and links between pages lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.pages import KMLAB, commands
from tests.places import REPOSITORY
from tools import manual

NAMES = [*manual.command_names()]


def test_every_command_and_every_group_has_a_page() -> None:
    assert set(NAMES) == {name for name, _ in commands()} | set(KMLAB.commands)


@pytest.mark.parametrize("name", ["run", "image list"])
def test_a_page_is_what_help_prints(name: str) -> None:
    text = manual.help_text(name)
    assert text.startswith(f"Usage: kmlab {name} [OPTIONS]")
    page = manual.command_page(name, text)
    assert page.startswith(f"# kmlab {name}\n\n{manual.summary(text)}.\n")
    assert text.rstrip() in page
    assert len(manual.summary(text)) < 100


def test_the_index_links_to_each_page() -> None:
    helps = dict.fromkeys(["", *NAMES], "Usage: kmlab\n\n  Do it. And more.\n\nOptions:\n")
    linked = re.findall(r"\((kmlab-[\w-]+)\.md\): (.*)", manual.index_page(helps))
    assert linked == [(manual.file_name(name), "Do it") for name in NAMES]


def test_help2man_is_given_a_program_that_prints_the_help_as_it_is(tmp_path: Path) -> None:
    text = "Usage: kmlab $HOME `id` 'x'\n\n  \\ K,…\n"
    script = manual.write_script("image list", text, tmp_path)
    assert script.name == "kmlab-image-list"
    assert subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout == text


def test_every_link_in_the_site_leads_to_a_page_of_it(tmp_path: Path) -> None:
    manual.write_pages(REPOSITORY, tmp_path)
    written = sorted(tmp_path.rglob("*.md"))
    assert tmp_path / "index.md" in written
    assert len(written) == len([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]) + 1
    for page in written:
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\((?!\w+:)([^)#]+)", prose):
            assert Path(os.path.normpath(page.parent / target)).is_file(), f"{page.name}: {target}"


def test_a_link_out_of_the_site_becomes_its_text() -> None:
    page, other = Path("/r/docs/a.md"), Path("/r/README.md")
    places = {page: Path("a.md"), other: Path("index.md")}
    text = "[home](../README.md#top), [`agent.c`](../guests/agent.c), [here](#x), [far](https://example.org)"
    assert manual.relinked(text, page, places) == (
        "[home](index.md#top), `agent.c`, [here](a.md#x), [far](https://example.org)"
    )
