"""kmlab.judge: a saved log with the module's .ko, the right one and others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.diagnosis.saved_log import JudgedLog, judge_file
from kmlab.kernel.symbols.elf import read_object
from kmlab.testing import module_image
from tests.places import TEST_DATA

DATA = TEST_DATA
LOG = DATA / "oops" / "guest-6.1-faults-null_read.txt"
(FAULTS,) = (DATA / "ko" / "crashers").glob("faults-6.1-*.ko")
OTHER = next((DATA / "ko" / "crashers").glob("checks-6.1-*.ko"))


def places(judged: JudgedLog) -> list[tuple[str | None, str | None, bool]]:
    return [(crash.function, crash.file, crash.line is not None) for crash in judged.crashes]


def stripped(image: bytes, names: tuple[str, ...]) -> bytes:
    """The same module without these sections, as far as anybody who looks for them can see."""
    elf, altered = read_object(image, "module.ko"), bytearray(image)
    for section in elf.sections:
        if section.name in names:
            at = bytes(altered).rindex(section.name.encode() + b"\0")
            altered[at : at + 2] = b".x"
    return bytes(altered)


def test_the_build_that_crashed_gives_the_line() -> None:
    judged = judge_file(str(LOG), FAULTS)
    assert places(judged) == [("null_read", "faults.c", True)] and judged.notes == ()


@pytest.mark.parametrize("log", sorted((DATA / "oops").glob("guest-6.1-faults-*.txt")), ids=lambda log: log.stem[17:])
def test_no_log_of_a_build_is_taken_for_another_s(log: Path) -> None:
    assert judge_file(str(log), FAULTS).notes == ()


def test_another_build_gives_no_line_and_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOG.read_text().replace("null_read+0x", "null_read+0x0").replace("/0x", "/0x1"))
    judged = judge_file(str(log), FAULTS)
    assert places(judged) == [("null_read", None, False)]
    (note,) = judged.notes
    assert "is not the faults that crashed: it has no " in note and note.endswith("give the .ko of that very build")


def test_a_source_that_was_changed_since_is_not_shown_as_what_crashed(tmp_path: Path) -> None:
    shutil.copy(FAULTS, tmp_path / "faults.ko")
    (tmp_path / "faults.c").write_text("/* as it is now */\n")
    os.utime(tmp_path / "faults.c", (1, 1))
    judged = judge_file(str(LOG), tmp_path)
    assert (judged.source, judged.notes) == (tmp_path, ())
    os.utime(tmp_path / "faults.ko", (0, 0))
    judged = judge_file(str(LOG), tmp_path / "faults.ko")
    assert judged.source is None and "faults.c was changed after" in judged.notes[0]


def test_a_build_for_another_kernel_is_another_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOG.read_text().replace(" 6.1.0-56-cloud-amd64 #1", " 6.12.9+deb12-cloud-amd64 #1"))
    judged = judge_file(str(log), FAULTS)
    assert places(judged) == [("null_read", None, False)]
    (note,) = judged.notes
    assert "it was built for the kernel 6.1.0-56-cloud-amd64, and the log is of 6.12.9+deb12-cloud-amd64" in note


@pytest.mark.parametrize("names", [(".debug_info",), (".debug_info", ".symtab")])
def test_a_stripped_build_says_that_it_is(names: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "faults.ko"
    file.write_bytes(stripped(FAULTS.read_bytes(), names))
    (note,) = judge_file(str(LOG), file).notes
    assert "was stripped of its debug information" in note


def test_another_module_is_said_to_be_another(tmp_path: Path) -> None:
    judged = judge_file(str(LOG), OTHER)
    assert places(judged) == [("null_read", None, False)]
    assert judged.notes == ("the log is about the module faults, and this is checks",)


def test_of_several_builds_the_one_that_crashed_is_found(tmp_path: Path) -> None:
    for number, image in enumerate((module_image("faults"), FAULTS.read_bytes(), OTHER.read_bytes())):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "faults.ko").write_bytes(image)
    judged = judge_file(str(LOG), tmp_path)
    assert places(judged) == [("null_read", "faults.c", True)] and judged.notes == ()


def test_what_a_sandbox_built_is_found_where_the_folder_has_no_module(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    (tmp_path / "built").mkdir()
    shutil.copy(FAULTS, tmp_path / "built" / "faults.ko")
    judged = judge_file(str(LOG), tmp_path / "faults", [tmp_path / "none", tmp_path / "built"])
    assert places(judged) == [("null_read", "faults.c", True)]
    with pytest.raises(ConfigError, match=r"no \.ko here"):
        judge_file(str(LOG), tmp_path / "faults", [tmp_path / "none"])


def test_a_stack_without_any_module_from_outside_of_the_tree_says_which_were_loaded() -> None:
    judged = judge_file(str(DATA / "oops" / "in-tree-module-only.txt"))
    (note,) = judged.notes
    assert note.endswith("no module from outside of the kernel's tree is on its stack; loaded: sluice, gate")


def test_a_stack_with_one_needs_no_such_note() -> None:
    assert judge_file(str(DATA / "oops" / "in-tree-victim-blamed.txt")).notes == ()
