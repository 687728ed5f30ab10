"""The pages stay true: keys, defaults, JSON and words are those of the program."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

from kmlab.config import lab
from kmlab.kernel.hang.watchdogs import ladder
from kmlab.kernel.log.taint import taint_names
from kmlab.provision.guest import GuestRecord
from kmlab.report import grid
from kmlab.run import result
from tests.pages import (
    INTERFACE,
    LAB_YAML,
    PAGES,
    blocks,
    code,
    ids,
    rows,
    section,
)
from tests.places import REPOSITORY
from tests.story import whole_result

# --- lab.yaml ------------------------------------------------------------------------------------------------------


@ids
def test_every_yaml_on_a_page_is_a_lab_or_a_part_of_one(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        head = "" if re.search(r"^name:", text, re.MULTILINE) else "name: part\n"
        head += "" if re.search(r"^guests:", text, re.MULTILINE) else "guests: {debian: {image: debian-12}}\n"
        file = tmp_path / f"{number}.yaml"
        file.write_text(head + text)
        assert lab.load_lab(file).guests


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
    assert told <= {*only, "frames", "sections"}


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
