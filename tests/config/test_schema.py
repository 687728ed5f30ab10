"""The schemas say what the program says: what it takes they take, and what it prints they know."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kmlab.common.errors import ConfigError
from kmlab.config import lab, starter
from kmlab.report import grid, json_schema
from kmlab.run import result
from tests import documents
from tests.pages import INTERFACE, PAGES, blocks, code, rows, section
from tests.places import REPOSITORY
from tests.program import Program
from tests.story import whole_result

NAMES = [subject.name for subject in json_schema.subjects()]
HEAD = "name: t\nguests: {debian: {image: debian-12}}\n"


def read(text: str) -> Any:
    """YAML as an editor reads it: keys are text, and nothing is a date."""
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = {
        first: [(tag, expression) for tag, expression in known if not tag.endswith("timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return json.loads(json.dumps(loader.get_single_data()))


def faults(name: str, text: str) -> list[str]:
    validator = jsonschema.Draft7Validator(json_schema.schema(name))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(read(text))]


# --- files ---------------------------------------------------------------------------------------------------------


def labs() -> Iterator[tuple[str, str]]:
    """Every lab.yaml, whole or in part, that is known to be right."""
    yield "lab.yaml", (REPOSITORY / "lab.yaml").read_text("utf-8")
    yield "init", starter.starter_files("t")["lab.yaml"]
    for page in PAGES:
        for number, text in enumerate(blocks(page, "yaml")):
            head = "" if re.search(r"^name:", text, re.MULTILINE) else "name: part\n"
            head += "" if re.search(r"^guests:", text, re.MULTILINE) else "guests: {debian: {image: debian-12}}\n"
            yield f"{page.name}-{number}", head + text


@pytest.mark.parametrize(("name", "text"), [*labs()], ids=lambda value: value if len(value) < 40 else "")
def test_every_lab_in_the_repository_and_on_a_page_is_one_by_the_schema(name: str, text: str) -> None:
    assert faults("lab", text) == [], name


@pytest.mark.parametrize(
    ("name", "glob"),
    [("image", "images/*.yaml"), ("key", "images/keys/*.yaml"), ("recipe", "guests/*/recipe.yaml")],
)
def test_every_file_of_the_catalogue_is_one_by_its_schema(name: str, glob: str) -> None:
    files = sorted(REPOSITORY.glob(glob))
    assert files
    for file in files:
        assert faults(name, file.read_text("utf-8")) == [], file


@pytest.mark.parametrize(
    "more",
    [
        "matrix: 6.10\n",
        "matrix: [6.1, backports, debian@6.12]\n",
        "modules: {m: {source: m, params: {a: 0x10, b: [1, two, true], c: yes}}}\n",
        "modules: {m: {source: m, timeout: 30}}\n",
        "modules: {m: {source: m, timeout: 1.5m, guests: debian}}\n",
        "modules: {m: {source: 7, expect: {outcome: [pass, oops], since: {6.4: {outcome: build-failed}}}}}\n",
        "modules: {m: {source: m, expect: {outcome: oops, kind: null-dereference, log: 5, not_log: [a, '/b+/']}}}\n",
        "modules:\nmatrix:\nallow:\n",
        "keep_runs: 3\nkeep_runs_size: 1.5 GiB\nvmcore_max: 100m\n",
        "default: [debian]\nmirror: https://e.org/{host}\nlibvirt: qemu:///system\n",
    ],
)
def test_what_the_program_takes_the_schema_takes(more: str, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(HEAD + more)
    lab.load_lab(tmp_path / "lab.yaml")
    assert faults("lab", HEAD + more) == []


@pytest.mark.parametrize(
    "text",
    [
        "guests: {debian: {image: debian-12}}\n",
        "name: t\nguests: {debian: {}}\n",
        "name: T_1\nguests: {debian: {image: debian-12}}\n",
        "name: t\nguests: {De_bian: {image: debian-12}}\n",
        HEAD + "modul: {}\n",
        HEAD + "modules: {m: {source: m, expect: {outcome: fine}}}\n",
        HEAD + "modules: {m: {source: m, timeout: 0}}\n",
        HEAD + "modules: {m: {source: m, timeout: soon}}\n",
        HEAD + "modules: {m: {source: m, params: {a-b: 1}}}\n",
        HEAD + "modules: {m: {source: m, expect: {since: {new: {outcome: pass}}}}}\n",
        HEAD + "accel: fast\n",
        HEAD + "keep_runs: 0\n",
        HEAD + "vmcore_max: 1000\n",
        "name: t\nguests: {debian: {image: debian-12, cpus: 65}}\n",
        "name: t\nguests: {debian: {image: debian-12, memory: 1024}}\n",
        "name: t\nguests: {debian: {image: debian-12, cmdline: 'a \"b\"'}}\n",
        "name: t\nguests: {debian: {image: {url: 'ftp://e.org/x'}}}\n",
        "name: t\nguests: {debian: {image: {name: debian-12, arch: m68k}}}\n",
        "name: t\nguests: [debian]\n",
    ],
)
def test_what_the_schema_refuses_the_program_refuses(text: str, tmp_path: Path) -> None:
    assert faults("lab", text) != []
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(ConfigError):
        lab.load_lab(tmp_path / "lab.yaml")


def test_editors_are_told_what_a_key_means() -> None:
    said = json_schema.schema("lab")
    assert "GUEST@KERNEL" in said["properties"]["matrix"]["description"]
    memory = said["definitions"]["GuestSpec"]["properties"]["memory"]
    assert memory["description"] == "The guest's memory, such as 1G. From 256M to 1T."


def test_patterns_are_ones_that_editors_understand_too() -> None:
    """JavaScript, which editors are written in, knows fewer escapes and no flags in an expression (ECMA-262)."""

    def patterns(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["pattern"]] if isinstance(value.get("pattern"), str) else []
            for inner in value.values():
                yield from patterns(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from patterns(inner)

    found = {pattern for subject in json_schema.FILES for pattern in patterns(json_schema.schema(subject.name))}
    assert len(found) > 20
    for pattern in found:
        assert not re.search(r"\(\?(?!:)", pattern), pattern
        escapes = set(re.findall(r"\\(x[0-9a-f]{2}|.)", pattern))
        assert escapes <= {"s", "S", ".", "\\", "[", "]", "{", "}", "x00", "x1f", "x7f"}, pattern


def test_a_new_lab_has_the_schema_beside_it_where_its_first_line_says(tmp_path: Path) -> None:
    assert Program(tmp_path)("init").code == 0
    first = (tmp_path / "lab.yaml").read_text("utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found and json.loads((tmp_path / found[1]).read_text("utf-8")) == json_schema.schema("lab")
    assert lab.load_lab(tmp_path / "lab.yaml").name


# --- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_is_one(name: str) -> None:
    made = json_schema.schema(name)
    jsonschema.Draft7Validator.check_schema(made)
    assert made["$schema"] == jsonschema.Draft7Validator.META_SCHEMA["$id"]


def test_the_documents_of_runs_are_what_their_schema_says() -> None:
    document = result.document([whole_result(), dataclasses.replace(whole_result(), modules_after=frozenset("a"))])
    documents.check(json.dumps(document))
    document["grid"] = grid.document(grid.grid_of([dataclasses.replace(whole_result(), outcome="oops")]))
    documents.check(json.dumps(document))


def test_the_json_on_the_page_of_the_interface_is_what_its_schema_says() -> None:
    (runs,) = re.findall(r"^```json\n(.*?)^```$", section(INTERFACE, "Runs"), re.MULTILINE | re.DOTALL)
    (page,) = re.findall(r"^```json\n(.*?)^```$", section(INTERFACE, "The grid"), re.MULTILINE | re.DOTALL)
    documents.check(json.dumps({**json.loads(runs), "grid": json.loads(page)}))


def test_a_document_with_a_key_too_many_or_too_few_is_found() -> None:
    document = {"schema": "kmlab.down/1", "stopped": []}
    documents.check(json.dumps(document))
    for wrong in ({**document, "more": 1}, {"schema": "kmlab.down/1"}, {**document, "stopped": [1]}):
        with pytest.raises(AssertionError):
            documents.check(json.dumps(wrong))


def test_the_interface_has_every_document_with_its_keys() -> None:
    table = [cells for cells in rows(section(INTERFACE, "Other documents")) if len(cells) == 3]
    told = {name: cells[2] for cells in table for name in code(cells[0])}
    for subject in json_schema.subjects():
        if subject.hidden is not None or subject.name == "run":
            continue
        keys = {*json_schema.schema(subject.name)["properties"]} - {"schema"}
        assert keys <= set(re.findall(r"\w+", told[subject.full])), subject.full


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_the_schemas_and_prints_one(tmp_path: Path) -> None:
    kmlab = Program(tmp_path)
    listed = kmlab("schema")
    assert [line.split()[0] for line in listed.out.splitlines()] == NAMES
    said = json.loads(kmlab("schema", "--json").out)
    assert [each["name"] for each in said["schemas"]] == NAMES
    for words in (("run",), ("kmlab.run/1",), ("run", "--json")):
        assert json.loads(kmlab("schema", *words).out) == json_schema.schema("run")


def test_a_schema_that_there_is_not_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    ended = Program(tmp_path)("schema", "recipes")
    assert (ended.code, ended.err) == (2, "kmlab: unknown schema 'recipes'\n  hint: did you mean 'recipe'?\n")
