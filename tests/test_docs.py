"""The pages stay true: what they show is tried against the program, its files and its values."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from kmlab import grid, lab, result
from kmlab.cli.app import app
from kmlab.guest import GuestRecord
from kmlab.kernel import shapes
from kmlab.kernel.crash import Crash
from kmlab.kernel.diagnostics import Diagnostic
from kmlab.kernel.klog import Record
from kmlab.kernel.ladder import ladder
from kmlab.kernel.taint import taint_names
from kmlab.kernel.trace import Frame
from kmlab.module import Step

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
INTERFACE = REPOSITORY / "docs" / "interface.md"
LAB_YAML = REPOSITORY / "docs" / "lab-yaml.md"
COMMON = {"--lab", "--json", "--connect", "--debug"}
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
    told = {code(cells[0])[0].split()[0]: cells[2] for cells in rows(section(INTERFACE, "Commands")) if len(cells) == 3}
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


def test_the_architecture_has_every_room_and_none_that_is_gone() -> None:
    house = REPOSITORY / "kmlab"
    text = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
    told = set(re.findall(r"`(?:\w+/)*(\w+\.py)`", text))
    there = {path.name for path in house.rglob("*.py")} - {"__init__.py"}
    assert there <= told, "a new room: give it a line in ARCHITECTURE.md"
    tests = {path.name for path in (REPOSITORY / "tests").rglob("*.py")}
    assert told <= there | tests | {"__init__.py"}
    assert {f"`{path.name}/`" for path in house.iterdir() if (path / "__init__.py").exists()} <= set(
        re.findall(r"`\w+/`", text)
    )


def test_the_readme_lists_every_package_that_setup_installs() -> None:
    script = (REPOSITORY / "tools" / "setup.sh").read_text("utf-8")
    lists = re.findall(r'^(?:run|test)="([^"]*)"', script, re.MULTILINE)
    assert len(lists) == 2
    wanted = {word for text in lists for word in text.split() if not word.startswith("$")}
    wanted |= set(re.findall(r"(?:emulator|firmware)=([\w-]+)", script))
    text = (REPOSITORY / "README.md").read_text("utf-8")
    told = {word for group in code(text[text.index("<details>") :]) for word in group.split()}
    assert wanted <= told, sorted(wanted - told)


# --- lab.yaml ------------------------------------------------------------------------------------------------------


@ids
def test_every_yaml_on_a_page_is_a_lab_or_a_part_of_one(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        head = "" if re.search(r"^name:", text, re.MULTILINE) else "name: part\n"
        head += "" if re.search(r"^guests:", text, re.MULTILINE) else "guests: {debian: {image: debian-12}}\n"
        file = tmp_path / f"{number}.yaml"
        file.write_text(head + text)
        lab.load_lab(file)


SHAPES: dict[str, tuple[type, set[str]]] = {
    "The lab": (lab.Lab, {"path", "file", "lines"}),
    "A guest": (lab.GuestSpec, {"name"}),
    "A module": (lab.Module, {"name"}),
    "What is expected": (lab.Expect, set()),
}


def test_the_page_of_lab_yaml_has_every_key_and_none_that_is_gone() -> None:
    for heading, (shape, hidden) in SHAPES.items():
        told = {code(cells[0])[0] for cells in rows(section(LAB_YAML, heading))}
        keys = {field.name for field in dataclasses.fields(shape)} - hidden
        assert told <= keys, f"{heading}: {sorted(told - keys)}"
        assert keys <= told, sorted(keys - told)


def test_the_defaults_on_the_page_of_lab_yaml_are_those_of_the_program(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("name: t\nguests: {debian: {image: debian-12}}\n")
    plain = lab.load_lab(file)
    for heading, value in (("The lab", plain), ("A guest", plain.guests["debian"])):
        for cells in rows(section(LAB_YAML, heading)):
            key, default = code(cells[0])[0], cells[1].strip("`")
            found = getattr(value, key)
            if isinstance(found, int) and not isinstance(found, bool):
                assert default in (str(found), f"{found >> 30}G"), key
            elif key in ("libvirt", "accel", "build"):
                assert default == found, key


# --- values --------------------------------------------------------------------------------------------------------


def whole_result() -> result.RunResult:
    """A result in which every list has something."""
    frame = Frame("null_read", 75, 137, "oops", reliable=True, exact=True, file="oops.c", line=27)
    crash = Crash(
        kind="oops",
        class_="null-dereference",
        title="BUG",
        function="null_read",
        module="oops",
        file="oops.c",
        line=27,
        task="cat",
        pid=1,
        cpu=1,
        frames=(frame,),
        sections=(),
        text="",
        fatal=False,
        truncated=False,
        fingerprint="0",
        time=None,
    )
    return result.RunResult(
        module="oops",
        source="examples/oops",
        guest="debian",
        crashes=(crash,),
        diagnostics=(Diagnostic("oops.c", 12, 6, "warning", "unused"),),
        taint_after=1 << 7 | 1 << 12 | 1 << 13,
        tainted_by={7: "exercise", 12: "load", 13: "load"},
        modules_before=frozenset({"loop", "virtio_blk"}),
        log=(Record(30.1, "alert", "BUG", None, 0),),
        steps=(Step("load", "ok", 0.3),),
    )


def keys(value: Any) -> Any:
    """The shape of a JSON value: its keys, all the way down; of a list, that of its first element."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def schema_block(heading: str = "Runs") -> Any:
    (text,) = re.findall(r"^```json\n(.*?)^```$", section(INTERFACE, heading), re.MULTILINE | re.DOTALL)
    return json.loads(text)


def test_the_json_of_the_interface_has_the_keys_that_a_run_has() -> None:
    said, done = schema_block(), result.document([whole_result()])
    assert said["schema"] == done["schema"]
    assert keys(said) == keys(done)
    assert list(said["results"][0]) == list(done["results"][0]), "in the same order"


def test_the_table_below_the_json_explains_every_key() -> None:
    told = {word for cells in rows(section(INTERFACE, "Runs")) for word in code(cells[0])}
    (only,) = schema_block()["results"]
    assert set(only) - {"seconds"} <= told
    assert told <= {*only, "frames"}


def test_the_grid_of_the_interface_has_the_keys_that_the_program_prints() -> None:
    page = grid.grid_of([dataclasses.replace(whole_result(), outcome="oops")])
    said, done = schema_block("The grid"), grid.document(page)
    assert keys(said) == keys(done)
    told = {word for cells in rows(section(INTERFACE, "The grid")) for word in code(cells[0])}
    assert told == set(done)


def test_the_interface_has_every_schema_that_a_command_prints() -> None:
    sources = "".join(path.read_text("utf-8") for path in (REPOSITORY / "kmlab").rglob("*.py"))
    printed = set(re.findall(r'"(kmlab\.\w+/\d+)"', sources))
    assert printed == set(re.findall(r"kmlab\.\w+/\d+", INTERFACE.read_text("utf-8")))


def test_the_interface_has_the_outcomes_in_their_order() -> None:
    told = tuple(code(cells[0])[0] for cells in rows(section(INTERFACE, "Outcomes")))
    assert told == result.WORST_LAST == get_args(lab.Outcome)


def test_the_interface_has_every_key_of_a_guests_record() -> None:
    table = section(INTERFACE, "Other documents").split("A guest's record:")[1]
    told = {word for cells in rows(table) for word in code(cells[0])}
    assert told == {field.name for field in dataclasses.fields(GuestRecord)}


def test_the_taint_flags_in_the_documents_are_names_that_the_program_has() -> None:
    every = set(taint_names((1 << 64) - 1))
    for page in PAGES:
        for text in blocks(page, "json"):
            for only in json.loads(text).get("results", []):
                assert {*only["taint"]["before"], *only["taint"]["after"]} <= every


def test_the_ladder_on_the_page_is_the_ladder_of_the_program() -> None:
    table = section(REPOSITORY / "docs" / "how-it-works.md", "The console is the witness")
    told = [(int(cells[1]), int(cells[2])) for cells in rows(table)]
    assert told == list(zip(ladder("kvm"), ladder("tcg"), strict=True))


# --- examples ------------------------------------------------------------------------------------------------------


def test_the_page_of_verdicts_has_every_class_of_finding_and_none_that_is_gone() -> None:
    cells = [row[1] for row in rows(section(REPOSITORY / "docs" / "verdicts.md", "What is recognised"))]
    said = {word for cell in cells for word in re.findall(r"`([\w-]+)`", cell)}
    assert said | {"oops", "warning", "hang", "panic"} == shapes.kinds_and_classes()


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
