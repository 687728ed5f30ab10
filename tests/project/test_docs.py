"""The pages stay true: their commands, links, files and examples are tried against the program."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from kmlab.config import lab
from kmlab.host.process import host_packages
from kmlab.kernel.crash import patterns
from tests.pages import (
    COMMON,
    INTERFACE,
    KMLAB,
    PAGES,
    blocks,
    code,
    commands,
    ids,
    options,
    prose,
    rows,
    section,
)
from tests.places import REPOSITORY

# --- command lines -------------------------------------------------------------------------------------------------


def lines_of_shell(page: Path) -> list[list[str]]:
    """The simple commands in a page's sh blocks, as words."""
    found: list[list[str]] = []
    for text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            found.append([])
            for word in words:
                if word in ("|", "&&", ";", "||"):
                    found.append([])
                else:
                    found[-1].append(word)
    return [words for words in found if words]


@ids
def test_every_command_line_on_a_page_is_one_that_the_program_takes(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for words in lines_of_shell(page):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
        if not words[0].endswith("kmlab"):
            continue
        name, command, rest = "kmlab", KMLAB, words[1:]
        while hasattr(command, "commands"):
            assert rest and rest[0] in command.commands, words
            name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
        try:
            command.make_context(name, rest)
        except Exception as error:  # typer's own, of a module that is not always named the same
            pytest.fail(f"{shlex.join(words)}: {error}")


def test_every_command_is_in_the_interface_with_all_of_its_options() -> None:
    for name, command in commands():
        heading = f"kmlab {name.split()[0]}"
        text = section(INTERFACE, heading)
        assert f"`kmlab {name}" in text, name
        told = set(re.findall(r"(?<![\w-])-{1,2}[a-z][a-z-]*", text))
        own = options(command) - COMMON
        assert own <= told, f"kmlab {name}: {sorted(own - told)} missing in docs/interface.md"
    headings = re.findall(r"^### kmlab (.+)$", INTERFACE.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(KMLAB.commands), "a heading for each command and none beside"


def test_the_interface_says_which_commands_have_the_options_in_common() -> None:
    every = {name for name, _ in commands()}
    table = [cells for cells in rows(section(INTERFACE, "Commands")) if len(cells) == 3]
    told = {word.split()[0]: cells[2] for cells in table for word in code(cells[0])}
    for option in COMMON:
        who, names = told[option], set(code(told[option]))
        said = every if who == "all" else names if who.startswith("only") else every - names
        assert said == {name for name, command in commands() if option in options(command)}, option


def test_the_options_of_a_run_are_all_in_its_table() -> None:
    told = {word.split()[0] for cells in rows(section(INTERFACE, "kmlab run")) for word in code(cells[0])}
    assert told == options(dict(commands())["run"]) - COMMON


def test_every_command_named_in_a_sentence_exists() -> None:
    known = {name for name, _ in commands()} | set(KMLAB.commands)
    for page in PAGES:
        for words in re.findall(r"`kmlab ([a-z]+(?: [a-z]+)?)", prose(page)):
            assert words in known or words.split()[0] in known - {"image"}, f"{page.name}: kmlab {words}"


# --- files ---------------------------------------------------------------------------------------------------------


@ids
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", prose(page)):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@ids
def test_every_link_into_a_page_meets_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", prose(page)):
        text = (page.parent / target if target else page).read_text("utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{target}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", (REPOSITORY / "README.md").read_text("utf-8")))
    pages = {str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").glob("*.md")}
    assert pages - linked == set()


@ids
def test_every_file_named_on_a_page_is_there(page: Path) -> None:
    tops = "kmlab|tests|docs|examples|images|guests|tools|benchmarks|.ci"
    for name in code(prose(page)):
        if re.fullmatch(rf"({tops})/[\w./-]*", name):
            homes = (REPOSITORY, REPOSITORY / "kmlab")
            # In the cache and beside a lab.yaml there are folders of these names too.
            assert any((home / name).exists() for home in homes), name


def test_every_path_in_a_command_line_is_there() -> None:
    for page in PAGES:
        for words in lines_of_shell(page):
            for word in words:
                if re.match(r"(examples|docs|tests|tools)(/|$)", word):
                    assert (REPOSITORY / word).exists(), f"{page.name}: {word}"


def test_the_architecture_names_no_file_that_is_gone() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert named
    assert [name for name in named if not any((REPOSITORY / top / name).exists() for top in ("", "kmlab"))] == []


def test_the_readme_lists_every_package_that_setup_installs() -> None:
    wanted = {row.packages["apt-get"] for row in host_packages.table() if row.use in ("run", "test")}
    text = (REPOSITORY / "README.md").read_text("utf-8")
    told = {word for group in code(text[text.index("<details>") :]) for word in group.split()}
    assert wanted <= told, sorted(wanted - told)


def test_the_page_of_hosts_has_the_packages_of_each_distribution() -> None:
    listed = rows(section(REPOSITORY / "docs" / "hosts.md", "Packages"))
    shown = [tuple(cell.strip("`") for cell in row[1:]) for row in listed]
    assert shown == [tuple(row.packages[name] for name in host_packages.MANAGERS) for row in host_packages.table()]


# --- words ---------------------------------------------------------------------------------------------------------

ARCHAIC = (
    "anew|beneath|is (?:told|said)|nobody says|of (?:its|their) own accord|one's own|the like of|thereof|"
    "what there (?:is|are)|whoever"
)
"""Words and phrases that a reader with little English does not know; the pages say it in common words."""


@ids
def test_a_page_has_common_words_only(page: Path) -> None:
    own_words = re.sub(r"`[^`]*`", "", prose(page))  # what kmlab, a kernel or a compiler prints is quoted as it is
    assert re.findall(rf"\b(?:{ARCHAIC})\b", own_words, re.IGNORECASE) == []


def test_every_message_on_the_page_of_troubleshooting_is_one_that_the_program_prints() -> None:
    texts = "\n".join(
        node.value
        for path in (REPOSITORY / "kmlab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    filled_in = r"…|'[^']*'(?!\w)|\d+|lab\.yaml|GiB|qemu:///\w*|\(process"
    messages = [
        message
        for cells in rows((REPOSITORY / "docs" / "troubleshooting.md").read_text("utf-8"))
        for message in code(cells[0])
        if " " in message and not message.startswith("kmlab ")
    ]
    assert len(messages) > 30
    for message in messages:
        for part in re.split(filled_in, message):
            assert part.strip(" :;,()") in texts, message


# --- examples ------------------------------------------------------------------------------------------------------


def test_the_page_of_verdicts_has_every_class_of_finding_and_none_that_is_gone() -> None:
    cells = [row[1] for row in rows(section(REPOSITORY / "docs" / "verdicts.md", "What is recognised"))]
    said = {word for cell in cells for word in re.findall(r"`([\w-]+)`", cell)}
    assert said | {"oops", "warning", "hang", "panic"} == patterns.kinds_and_classes()


def test_the_table_of_examples_has_every_folder_with_what_lab_yaml_expects() -> None:
    page = REPOSITORY / "examples" / "README.md"
    folders = {path.name for path in page.parent.iterdir() if path.is_dir()}
    told = {cells[0].split("]")[0].strip("["): code(cells[2]) for cells in rows(page.read_text("utf-8"))}
    modules = lab.load_lab(REPOSITORY / "lab.yaml").modules
    expected = {
        Path(module.source).name: [*module.expect.outcome, *filter(None, [module.expect.function])]
        for module in modules.values()
    }
    assert set(told) == folders == set(expected)
    assert told == expected
    for name in folders:
        assert (page.parent / name / "README.md").exists(), name


def test_the_changelog_counts_the_examples() -> None:
    folders = [path for path in (REPOSITORY / "examples").iterdir() if path.is_dir()]
    assert f"- {len(folders)} examples." in (REPOSITORY / "CHANGELOG.md").read_text("utf-8")


# --- care ----------------------------------------------------------------------------------------------------------


@ids
def test_no_number_is_left_to_be_filled_in(page: Path) -> None:
    assert re.findall(r"@@\w+@@", page.read_text("utf-8")) == []


@ids
def test_a_table_has_as_many_cells_in_each_row(page: Path) -> None:
    widths: list[int] = []
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            widths = []
            continue
        widths.append(len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))))
        assert widths[0] == widths[-1], line
