"""The lines that ran, in the formats that other tools read; gcovr itself writes all but LCOV."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kmlab.common.errors import ConfigError
from kmlab.report.coverage import check_coverage, write_coverage
from kmlab.run.result import RunResult
from tests.story import whole_result

SOURCE = "int f(int x)\n{\n\tif (x)\n\t\treturn 1;\n\treturn 0;\n}\n"


@pytest.fixture
def results(tmp_path: Path) -> list[RunResult]:
    """Two runs of one module, which took both ways."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.c").write_text(SOURCE)
    ended = dataclasses.replace(whole_result(), folder=tmp_path / "m")
    one = dataclasses.replace(ended, line_counts={"m.c": {3: 1, 4: 1, 5: 0}})
    return [one, dataclasses.replace(ended, line_counts={"m.c": {3: 2, 4: 0, 5: 0}})]


def test_lcov_has_the_sums_of_all_runs(results: list[RunResult], tmp_path: Path) -> None:
    said = write_coverage(tmp_path / "out.info", results)
    text = (tmp_path / "out.info").read_text()
    assert text.splitlines()[1:] == [
        *(f"SF:{tmp_path}/m/m.c", "DA:3,3", "DA:4,1", "DA:5,0", "LF:3", "LH:2", "end_of_record"),
    ]
    assert said == f"2 of 3 lines ran (66 %): {tmp_path}/out.info"


def test_cobertura_has_each_line(results: list[RunResult], tmp_path: Path) -> None:
    write_coverage(tmp_path / "out.xml", results)
    lines = ElementTree.parse(tmp_path / "out.xml").getroot().iter("line")
    assert [(line.get("number"), line.get("hits")) for line in lines] == [("3", "3"), ("4", "1"), ("5", "0")]


def test_a_page_and_a_folder_of_pages_show_the_source(results: list[RunResult], tmp_path: Path) -> None:
    write_coverage(tmp_path / "out.html", results)
    write_coverage(tmp_path / "pages", results)
    assert "return" in (tmp_path / "out.html").read_text()
    assert any("return" in page.read_text() for page in (tmp_path / "pages").glob("*.html"))


def test_a_kernel_that_counted_nothing_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="counted nothing") as error:
        write_coverage(tmp_path / "out.info", [dataclasses.replace(whole_result(), folder=tmp_path)])
    assert "kernel: debug" in (error.value.hint or "")


def test_an_unknown_ending_is_an_error_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="unknown ending"):
        check_coverage(Path("x.pdf"))
