"""Runs are dealt to machines, and their results are put together again: each row once, and none is forgotten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmlab.cli.options.shared_options import cli_state
from kmlab.common.errors import ConfigError
from kmlab.config.lab import GuestSpec, Lab, Module, load_lab
from kmlab.host.process.command import observe_programs
from kmlab.run import result
from kmlab.run.parallel import Job
from kmlab.sharding.dealing import RowName, deal, row_of
from kmlab.sharding.merging import merge
from kmlab.sharding.shard import Shard, parse_shard
from kmlab.sharding.stored_results import read_results
from kmlab.testing import Act, FakeModule, World
from tests import documents
from tests.pages import KMLAB, code, rows, section
from tests.places import REPOSITORY
from tests.story import whole_result

# --- which shard ---------------------------------------------------------------------------------------------------

VARIABLES = {
    "GitHub": ({"KMLAB_SHARD_INDEX": "1", "KMLAB_SHARDS": "8"}, "2/8"),
    "GitLab": ({"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "8"}, "2/8"),
    "Buildkite": ({"BUILDKITE_PARALLEL_JOB": "0", "BUILDKITE_PARALLEL_JOB_COUNT": "3"}, "1/3"),
    "Slurm": ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}, "3/3"),
    "Slurm, every second": (
        {
            "SLURM_ARRAY_TASK_ID": "4",
            "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_STEP": "2",
        },
        "3/3",
    ),
    "Kubernetes": ({"JOB_COMPLETION_INDEX": "3", "KMLAB_SHARDS": "4"}, "4/4"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_the_variables_of_a_service_say_which_shard_this_is(name: str) -> None:
    environment, expected = VARIABLES[name]
    assert str(parse_shard("auto", environment)) == expected


@pytest.mark.parametrize("text", ["0/8", "9/8", "2", "2/", "a/b", "2/8/3", "-1/8", "1/99999", "²/8"])
def test_a_word_that_is_no_shard_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="is not one of several"):
        parse_shard(text, {})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "finds no variables of a CI server"),
        ({"JOB_COMPLETION_INDEX": "1"}, "KMLAB_SHARDS is not set"),
        ({"CI_NODE_INDEX": "x", "CI_NODE_TOTAL": "2"}, "is not a number"),
        ({"CI_NODE_INDEX": "3", "CI_NODE_TOTAL": "2"}, "is not one of 2 jobs"),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}, "is not one of 3"),
    ],
)
def test_variables_that_say_no_shard_are_an_error(environment: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_shard("auto", environment)


def test_plain_words_are_a_shard() -> None:
    assert parse_shard("2/8", {}) == Shard(2, 8)


# --- dealing -------------------------------------------------------------------------------------------------------


def plan_of(modules: int, kernels: int, guests: int = 1) -> list[Job]:
    """A plan in which each kernel is one base, and each base has several guests."""
    specs = [
        GuestSpec(name=f"g{g}-k{k}", image="debian-12", kernel=f"6.{k}", memory=(g + 1) << 30)
        for k in range(kernels)
        for g in range(guests)
    ]
    return [Job(spec, Module(name=f"m{m}", source=Path(f"m{m}"))) for m in range(modules) for spec in specs]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2), st.integers(1, 12), st.randoms())
def test_each_row_is_dealt_once_and_a_base_is_split_only_if_there_are_too_few(
    modules: int, kernels: int, guests: int, total: int, random: Any
) -> None:
    planned = plan_of(modules, kernels, guests)
    durations = {row_of(job): random.random() * 100 for job in planned if random.random() < 0.7}
    dealt = deal(planned, total, durations)
    assert len(dealt) == total
    assert sorted(row_of(job) for jobs in dealt for job in jobs) == sorted(map(row_of, planned))
    bases = [{job.spec.kernel for job in jobs} for jobs in dealt]
    if kernels >= total:
        assert sum(map(len, bases)) == kernels, "no two shards bake the same base"
        assert all(dealt)
    else:
        assert all(len(each) <= 1 for each in bases)
        assert sum(map(bool, dealt)) == min(total, len(planned))
    assert dealt == deal(planned, total, dict(reversed(durations.items()))), "the same on every machine"


def test_the_longest_rows_are_dealt_first() -> None:
    planned = plan_of(4, 1)
    durations = {RowName(f"m{n}", "g0-k0"): seconds for n, seconds in enumerate((10.0, 1.0, 9.0, 2.0))}
    loads = [sum(durations[row_of(job)] for job in jobs) for jobs in deal(planned, 2, durations)]
    assert loads == [11.0, 11.0]


# --- stored results ------------------------------------------------------------------------------------------------


def stored(folder: Path, name: str, *results: result.RunResult, planned: list[tuple[str, str]] | None = None) -> Path:
    document: dict[str, Any] = dict(result.document(results))
    if planned is not None:
        rows_of_plan = [{"module": module, "guest": guest} for module, guest in planned]
        document["shard"] = {"number": 1, "count": 2, "planned": rows_of_plan}
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def run_of(module: str, outcome: str = "pass", guest: str = "debian") -> result.RunResult:
    return result.RunResult(module=module, source=module, guest=guest, outcome=outcome, kernel="6.1.0")


def test_a_stored_result_is_the_same_as_before(tmp_path: Path) -> None:
    whole = dataclasses.replace(whole_result(), outcome="oops")
    (run,) = read_results(stored(tmp_path, "a.json", whole), tmp_path).runs
    again, before = dict(result.to_json(run.result)), dict(result.to_json(whole))
    assert again == before
    assert run.json == json.loads(json.dumps(before))


@pytest.mark.parametrize("source", ["/etc", "../../etc", "a/../../etc"])
def test_a_result_cannot_name_a_folder_elsewhere(tmp_path: Path, source: str) -> None:
    (run,) = read_results(stored(tmp_path, "a.json", dataclasses.replace(run_of("a"), source=source)), tmp_path).runs
    assert run.result.folder is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "kmlab.up/1"}', '{"schema": "kmlab.run/1", "results": [{}]}', "[" * 100_000, "\xff"],
)
def test_a_file_that_has_no_results_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a\.json: (not a kmlab\.run/1 document|no JSON document)"):
        read_results(path, tmp_path)


def test_each_wrong_value_of_a_result_is_one_clear_error(tmp_path: Path) -> None:
    good = json.loads(json.dumps(result.document([whole_result()])))
    path = tmp_path / "a.json"
    for key in good["results"][0]:
        for wrong in ({"x": 1}, 1.5, "word", [None]):
            value = json.loads(json.dumps(good))
            value["results"][0][key] = wrong
            path.write_text(json.dumps(value))
            try:
                read_results(path, tmp_path)
            except ConfigError as error:
                assert "a.json: not a kmlab.run/1 document" in error.message


# --- merge ---------------------------------------------------------------------------------------------------------

PLANNED = [("a", "debian"), ("b", "debian"), ("c", "debian")]


def test_the_rows_of_a_lost_machine_are_missing_until_its_shard_has_run_again(tmp_path: Path) -> None:
    first = read_results(stored(tmp_path, "1.json", run_of("b"), planned=PLANNED), tmp_path)
    merged = merge([first])
    assert [run.row.module for run in merged.runs] == ["b"]
    assert [row.module for row in merged.missing] == ["a", "c"]
    again = read_results(stored(tmp_path, "2.json", run_of("a"), run_of("c"), planned=PLANNED), tmp_path)
    merged = merge([first, again])
    assert [run.row.module for run in merged.runs] == ["a", "b", "c"]
    assert (merged.missing, merged.notes) == ((), ())


def test_of_several_results_of_a_row_one_counts(tmp_path: Path) -> None:
    files = [
        read_results(stored(tmp_path, f"{n}.json", run_of("a", outcome)), tmp_path)
        for n, outcome in enumerate(("pass", "oops", "error"))
    ]
    merged = merge(files)
    assert [run.result.outcome for run in merged.runs] == ["oops"], "the last one that is no failure of the lab"
    assert len(merged.notes) == 1 and "3 results" in merged.notes[0]
    same = read_results(stored(tmp_path, "same.json", run_of("a")), tmp_path)
    assert merge([same, same]).notes == ()


def test_a_line_that_a_lost_machine_did_not_finish_is_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(result.document([run_of(name)])) for name in ("a", "b")]
    path = tmp_path / "a.jsonl"
    path.write_text(f"{lines[0]}\n{lines[1][:50]}")
    assert [run.row.module for run in read_results(path, tmp_path).runs] == ["a"]
    path.write_text(f"{lines[0][:50]}\n{lines[1]}\n")
    with pytest.raises(ConfigError, match="no JSON document in line 1"):
        read_results(path, tmp_path)


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def course(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a lab of four rows in two guests of one base, in a fake world; commands run in it."""
    text = lab.path.read_text().replace("modules:\n", "modules:\n  hello: {source: hello, guests: [debian, other]}\n")
    lab.path.write_text(text.replace("params: {source: params,", "params: {source: params, guests: [debian, other],"))
    assert len(load_lab(lab.path).modules) == 2
    monkeypatch.chdir(lab.folder)
    params = FakeModule(name="params", load=Act(kernel=("count is 3",)))
    with World(params) as world:
        monkeypatch.setattr(cli_state, "build_host", lambda: world.host)
        yield lab.folder
    observe_programs(None)


def call(*words: str) -> int:
    return int(KMLAB.main(list(words), standalone_mode=False) or 0)


def test_shards_are_run_and_merged_and_a_lost_one_is_told(
    course: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("test", "--shard", "1/2", "--report", "r1.json", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    documents.check(json.dumps(document))
    assert (len(document["results"]), len(document["shard"]["planned"])) == (2, 4)
    saved = json.loads((course / "r1.json").read_text())
    assert saved["shard"] == document["shard"]

    assert call("merge", "r1.json", "--json", "--report", "page.html", "--report", "all.json") == 3
    merged = json.loads(capsys.readouterr().out)
    documents.check(json.dumps(merged))
    assert len(merged["results"]) == len(merged["missing"]) == 2
    assert json.loads((course / "all.json").read_text()) == merged
    assert "no machine has a result of it" in (course / "page.html").read_text()

    monkeypatch.setenv("CI_NODE_INDEX", "2")
    monkeypatch.setenv("CI_NODE_TOTAL", "2")
    assert call("test", "--shard", "auto", "--report", "more/r2.json", "--durations", "r1.json") == 0
    capsys.readouterr()
    assert call("merge", "r1.json", "more", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["missing"] == []
    found = [(each["module"], each["guest"]) for each in whole["results"]]
    assert sorted(found) == [(m, g) for m in ("hello", "params") for g in ("debian", "other")]
    assert [row["module"] for row in whole["grid"]["rows"]] == ["hello", "params"]


def test_a_shard_without_rows_is_a_success_that_merges(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("test", "--shard", "5/5", "--report", "r5.json") == 0
    assert "shard 5/5: 0 of 4 runs" in capsys.readouterr().err
    assert call("merge", "r5.json") == 3
    assert capsys.readouterr().out.count("missing: ") == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("test", "--durations", "x.json"), "--durations needs --shard"),
        (("test", "--shard", "3/2"), "is not one of several"),
        (("merge", "nowhere.json"), "cannot read"),
        (("merge", "hello"), "no results in this folder"),
    ],
)
def test_a_mistake_is_one_clear_error(course: Path, words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        call(*words)


def test_the_page_names_the_variables_of_each_service() -> None:
    from kmlab.sharding.shard import SERVICES

    table = rows(section(REPOSITORY / "docs" / "many-machines.md", "Which shard is this"))
    told = {word for cells in table for word in code(cells[1])}
    assert told == {word for each in SERVICES for word in (each.number, each.total)}
