"""The pytest plugin, in runs of pytest of their own, on guests of a fake world."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from kmlab import api
from kmlab.common import paths
from tests.pages import blocks, code, rows, section
from tests.places import REPOSITORY
from tests.story import LAB, OOPS

pytest_plugins = ["pytester"]
PLUGIN = "kmlab.integrations.pytest_plugin"
CONFTEST = f"""\
import pytest
from kmlab.testing import Act, FakeModule, World

@pytest.fixture(scope="session")
def kmlab_host():
    oops = Act(kernel={OOPS!r}, code=137)
    with World(FakeModule(name="hello", load=oops)) as world:
        yield world.host
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, xdg: object, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a lab, two modules and pytest's own settings."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makefile(".yaml", lab=LAB)
    pytester.makeconftest(CONFTEST)
    for name in ("good", "hello", "params"):
        folder = pytester.mkdir(name)
        (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
        (folder / f"{name}.c").write_text("/* nothing */\n")
    return pytester


def run(suite: pytest.Pytester, *words: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", PLUGIN, "-p", "no:cacheprovider", *words)


def test_a_run_that_is_as_expected_passes_and_gives_its_result(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_good(kmlab_run, guest, kmlab_lab):
            result = kmlab_run("good", params={"n": 3, "list": [1, 2]})
            assert (result.outcome, result.guest, guest.name) == ("pass", "debian", "debian")
            assert [step.name for step in result.steps] == ["sync", "build", "load", "unload"]
            assert kmlab_lab.lab.name == "fake"

        def test_expected(kmlab_run):
            assert kmlab_run("hello", expect="oops").ok

        def test_entry_of_the_lab(kmlab_run):
            result = kmlab_run("params", check=False)
            assert result.unmet == ("expected in the log: count is 3",)
    """)
    run(suite).assert_outcomes(passed=3)


def test_a_run_that_is_not_as_expected_fails_with_its_verdict(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_bad(kmlab_run):
            kmlab_run("hello")

        def test_later(kmlab_run):
            assert kmlab_run("hello", check=False).ok
    """)
    result = run(suite)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            '>*kmlab_run("hello")',
            "E*RunFailed: OOPS  hello on debian*NULL pointer dereference in hello_init (NOT as expected: pass)*",
            "E*hello_init [[]hello]",
            "E*evidence: .kmlab/runs/*",
            "*- Captured kmlab call -*",
            "OOPS  hello on debian*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py:*")


def test_the_mark_runs_a_test_with_each_guest_and_kernel(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest

        @pytest.mark.kmlab(guests=["debian", "other"])
        def test_guests(kmlab_run, guest):
            assert kmlab_run("good").guest == guest.name

        @pytest.mark.kmlab(kernels=["default", "exact"])
        def test_kernels(guest):
            assert guest.spec.kernel in ("default", "exact")
    """)
    result = run(suite, "-v")
    result.assert_outcomes(passed=4)
    for name in ("test_guests[[]debian]", "test_guests[[]other]", "test_kernels[[]exact]"):
        result.stdout.fnmatch_lines([f"*::{name} PASSED*"])


def test_a_wrong_word_of_the_mark_is_an_error(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest

        @pytest.mark.kmlab(kernel="6.1")
        def test_it(kmlab_run):
            kmlab_run("good")
    """)
    result = run(suite)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*the mark kmlab takes only kernels=*"])


def test_a_mistake_is_one_clear_error(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from kmlab import api

        def test_outcome(kmlab_run):
            with pytest.raises(api.ConfigError, match="unknown outcome 'ops'") as caught:
                kmlab_run("good", expect="ops")
            assert "oops" in caught.value.hint

        def test_parameter(kmlab_run):
            with pytest.raises(api.ConfigError, match="is no name of a parameter"):
                kmlab_run("good", params={"a b": 1})

        def test_folder(kmlab_run):
            with pytest.raises(api.ConfigError):
                kmlab_run("nowhere")

        def test_result(kmlab_run):
            with pytest.raises(api.RunFailed) as caught:
                kmlab_run("hello")
            assert caught.value.result.crashes[0].function == "hello_init"
    """)
    run(suite).assert_outcomes(passed=4)


def test_a_used_guest_is_restored_when_a_run_left_it_dirty(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_dirty(kmlab_run, guest):
            kmlab_run("hello", expect="oops")
            assert kmlab_run("good").guest_survived
            assert guest.execute("echo h > /proc/sysrq-trigger").ok

        def test_stop(guest):
            assert guest.stop()
            assert not guest.stop()
            guest.restore()
    """)
    run(suite).assert_outcomes(passed=2)


ROOM = """
from kmlab.host.hypervisor import capacity

capacity.measured = lambda folder: capacity.Capacity({cores}, 1 << 40, 1 << 40)
"""
"""What a conftest says so that the host has room for a number of guests, whatever runs on it now."""


def test_workers_of_xdist_have_guests_of_their_own_and_stop_them(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + ROOM.format(cores=2))
    suite.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_good(kmlab_run, guest, number, worker_id):
            result = kmlab_run("good")
            assert result.guest == guest.name == f"debian-{worker_id}"

        def test_bad(kmlab_run):
            kmlab_run("hello")
    """)
    result = run(suite, "-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["E*BUG: kernel NULL pointer dereference*"])
    records = list(paths.state_home().glob("labs/*/*/guest.json"))
    assert records == [], "the workers' guests stop at the end"


def test_workers_without_a_place_of_their_own_take_turns(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + ROOM.format(cores=1))
    suite.makepyfile("""
        import pathlib, time, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_alone(guest, number):
            assert guest.name == "debian-gw0"
            mark = pathlib.Path("mark")
            mark.touch(exist_ok=False)
            time.sleep(0.2)
            mark.unlink()
    """)
    run(suite, "-p", "xdist", "-n", "2").assert_outcomes(passed=4)


def test_a_run_of_pytest_that_does_not_use_the_plugin_imports_nothing_of_it(pytester: pytest.Pytester) -> None:
    code = (
        "import sys, pytest, kmlab.integrations.pytest_plugin; print(*sorted(n for n in sys.modules if 'kmlab' in n))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["kmlab", "kmlab.integrations", "kmlab.integrations.pytest_plugin"]


def test_the_plugin_is_an_entry_point_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    assert f'[project.entry-points.pytest11]\nkmlab = "{PLUGIN}"\n' in text


def test_the_examples_on_the_page_run(suite: pytest.Pytester) -> None:
    page = REPOSITORY / "docs" / "pytest.md"
    *tests, script = blocks(page, "python")
    hello = """
from kmlab.testing import Act, FakeModule, World

@pytest.fixture(scope="session")
def kmlab_host():
    hello = Act(kernel=("Hello, world.",))
    with World(FakeModule(name="hello", load=hello, unload=Act(kernel=("Goodbye, world.",)))) as world:
        yield world.host
"""
    suite.makeconftest(f"import pytest\n{hello}")
    suite.makefile(".yaml", lab=LAB.replace("other:", "noble:").replace("modules:", "matrix: []\nmodules:"))
    for name in ("hello", "params", "chardev"):
        folder = suite.path / "examples" / name
        folder.mkdir(parents=True)
        (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
    suite.makepyfile("\n".join(tests).replace('["6.1", "6.12"]', '["default", "exact"]'))
    run(suite).assert_outcomes(passed=6)
    compile(script, str(page), "exec")
    used = {node.attr for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Attribute)}
    assert {"open_lab", "verdict"} <= used & set(api.__all__)


def test_every_name_of_the_api_on_the_page_exists() -> None:
    for cells in rows(section(REPOSITORY / "docs" / "pytest.md", "Without pytest")):
        for name in code(cells[0]):
            first, *more = name.partition("(")[0].split(".")
            assert first in api.__all__
            assert all(hasattr(getattr(api, first), word) for word in more), name
