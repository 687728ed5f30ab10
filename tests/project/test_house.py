"""The house stays as it is drawn: who may import whom, who prints, who touches the world."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import kmlab
from tests.places import REPOSITORY

HOUSE = Path(kmlab.__file__).parent
TESTS = REPOSITORY / "tests"

FLOORS = (
    # The ground: the standard library alone.
    ("common",),
    # What was asked for; what is known of kernels; libvirt's values; the doors to the world.
    ("config/yaml", "kernel/log", "kernel/symbols", "host/process"),
    ("virt/devices",),
    (
        "config",
        "virt",
        "kernel/build",
        "kernel/crash",
        "kernel/detectors",
        "host/channel",
        "host/disk",
        "host/hypervisor",
        "host/net",
    ),
    ("kernel/module", "kernel/hang", "kernel/ktap", "kernel/crash/parser", "host/packages"),
    ("kernel/signing", "host", "distribution"),
    # Image, base, checkpoint, guest.
    ("provision/plan",),
    ("provision/images",),
    ("provision/bases",),
    ("provision/kernels",),
    ("provision",),
    # What a guest's console and memory tell; a run; what is made of its result.
    ("diagnosis",),
    ("run/build",),
    ("run/context", "run/torture"),
    ("run/steps/checks",),
    ("run/steps",),
    ("run",),
    ("report", "secure_boot", "selftest", "debugger", "sharding"),
    ("report/formats", "cli/help", "cli/output"),
    # What programs use, and what serves other programs.
    ("api",),
    ("integrations", "cli/options"),
    # Imported by nobody.
    ("cli", "testing"),
    ("__main__",),
)
"""The rooms, from the ground up: a file may import from floors below its own, and from its own room."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES = 13
"""Python files in one folder, at most; a room that needs more is two rooms."""
ONLY_IN = {
    "libvirt": {"host/hypervisor/libvirt_worker.py"},
    "libvirt_qemu": {"host/hypervisor/libvirt_worker.py"},
    "paramiko": {"host/channel/ssh.py"},
    "pycdlib": {"host/disk/disks.py"},
    "subprocess": {"host/process/command.py"},
    "rich": {"cli/output/progress.py", "cli/output/watch_screen.py"},
    "watchfiles": {"host/process/file_watch.py"},
    "urllib3": {"host/net/download.py"},
}
OUTSIDE = {"os", "shutil", "socket", "tempfile", "sys", "time", "threading", "select", "glob", "urllib", "http"}
"""What a module would need for input and output, or to look at a clock."""
FILE_CALLS = {
    *("read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir", "stat", "lstat"),
    *("mkdir", "unlink", "iterdir", "glob", "rglob", "resolve", "touch", "chmod", "samefile", "readlink"),
}


class Import(NamedTuple):
    file: str
    line: int
    name: str
    """The module, and for `from a import b` a.b."""
    typing_only: bool

    def __str__(self) -> str:
        return f"kmlab/{self.file}:{self.line}: {self.name}"


def files() -> list[Path]:
    return sorted(HOUSE.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, also those inside of functions."""
    whole = tree(path)
    guarded = {
        id(inner)
        for node in ast.walk(whole)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    file = str(path.relative_to(HOUSE))
    for node in ast.walk(whole):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) in guarded)


def all_imports() -> list[Import]:
    return [found for path in files() for found in imports(path)]


def room(file: str) -> str:
    """The room that a file is in: its folder below kmlab/, or itself where it lies in none."""
    place = PurePosixPath(file)
    return place.stem if place.parent == PurePosixPath(".") else str(place.parent)


def house(room: str) -> str:
    """The package at the top that a room belongs to."""
    return room.split("/", maxsplit=1)[0]


def target(name: str) -> str | None:
    """The room that an import goes to; None outside of the house."""
    words = name.split(".")
    if words[0] != "kmlab" or words[1:2] == ["__version__"]:
        return None
    for size in range(len(words), 1, -1):
        place = "/".join(words[1:size])
        if (HOUSE / place).is_dir():
            return place
        if (HOUSE / f"{place}.py").is_file():
            return room(f"{place}.py")
    return None


def test_every_file_has_a_floor() -> None:
    rooms = {room(str(path.relative_to(HOUSE))) for path in files() if len(tree(path).body) > 1} - {"__init__"}
    assert rooms == set(FLOOR), "a new room: give it a floor here and in ARCHITECTURE.md"


def test_every_room_says_what_happens_in_it() -> None:
    silent = [str(p.relative_to(HOUSE)) for p in HOUSE.rglob("__init__.py") if not ast.get_docstring(tree(p))]
    assert silent == []


def test_no_room_is_crowded() -> None:
    folders = {path.parent for path in files()}
    crowded = {str(f.relative_to(HOUSE)): n for f in folders if (n := len(list(f.glob("[!_]*.py")))) > MOST_FILES}
    assert crowded == {}


def test_each_folder_of_tests_is_named_like_a_room() -> None:
    tests = {str(path.parent.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")} - {
        "debug",
        "guest",
        "hosts",
        "project",
    }
    assert tests <= {str(path.parent.relative_to(HOUSE)) for path in files()}
    crowded = [str(f) for f in tests if len(list((TESTS / f).glob("test_*.py"))) > MOST_FILES]
    assert crowded == []


def test_every_folder_of_tests_is_collected() -> None:
    """pytest passes over folders named "build" if it is left to itself."""
    settings = (HOUSE.parent / "pyproject.toml").read_text("utf-8")
    assert 'norecursedirs = ["data", ".*"]' in settings


def test_no_two_files_have_one_name() -> None:
    names: dict[str, list[str]] = {}
    for path in files():
        names.setdefault(path.name, []).append(str(path.relative_to(HOUSE)))
    twice = {name: places for name, places in names.items() if len(places) > 1 and name != "__init__.py"}
    assert twice == {}


def test_arrows_only_go_down_a_floor() -> None:
    wrong = []
    for found in all_imports():
        here, there = room(found.file), target(found.name)
        if there is not None and there != here and FLOOR[there] >= FLOOR[here]:
            wrong.append(str(found))
    assert wrong == []


def test_the_drawing_has_the_floors_that_are_enforced() -> None:
    page = (HOUSE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawing = page.split("<!-- floors -->")[1]
    drawn = [
        {name.removesuffix("/") for name in re.findall(r"`([a-z_/]+)`", line)}
        for line in drawing.splitlines()
        if re.match(r"\| \d+ \|", line)
    ]
    assert drawn[::-1] == [set(rooms) for rooms in FLOORS]


def test_cli_is_imported_by_nobody_and_alone_imports_typer() -> None:
    for found in all_imports():
        here = room(found.file)
        if here not in ("cli", "__main__"):
            assert target(found.name) not in {"cli", "testing"} - {here}, found
        if house(here) != "cli":
            assert found.name.split(".")[0] not in ("typer", "click"), found


def test_only_render_prints_and_progress_beside_it() -> None:
    # The worker's stdout is its side of a conversation, and the terminal is the person's own while they are joined.
    allowed = {
        *("cli/output/render.py", "cli/output/progress.py"),
        *("host/hypervisor/libvirt_worker.py", "host/process/terminal.py"),
    }
    wrong = []
    for path in files():
        file = str(path.relative_to(HOUSE))
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node.func)
            speaks = text in ("print", "typer.echo", "typer.secho") or text.startswith(("sys.stdout.", "sys.stderr."))
            if speaks and file not in allowed:
                wrong.append(f"{file}:{node.lineno}: {text}")
    assert wrong == []


def test_kernel_virt_and_host_never_import_one_another() -> None:
    pillars = {"kernel", "virt", "host"}
    wrong = [
        str(found)
        for found in all_imports()
        if (here := house(room(found.file))) in pillars and house(target(found.name) or "") in pillars - {here}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["kernel", "virt"])
def test_what_thinks_touches_no_file_and_no_clock(package: str) -> None:
    wrong = []
    for path in sorted((HOUSE / package).rglob("*.py")):
        for found in imports(path):
            if found.name.split(".")[0] in OUTSIDE or found.name.startswith("kmlab.common.paths"):
                wrong.append(str(found))
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if (isinstance(called, ast.Name) and called.id in ("open", "print", "input")) or (
                isinstance(called, ast.Attribute) and called.attr in FILE_CALLS
            ):
                wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(called)}")
    assert wrong == []


def test_lab_and_catalog_read_their_yaml_and_nothing_else() -> None:
    for found in all_imports():
        if found.file in ("config/lab.py", "config/catalog.py"):
            there = target(found.name)
            # The kinds of devices are keys of lab.yaml.
            assert there in (None, "common", "config/yaml", "virt/devices") and not found.name.startswith(
                "kmlab.common.paths"
            ), found


def test_the_ground_is_the_standard_library_alone() -> None:
    for found in all_imports():
        if room(found.file) == "common":
            top = found.name.split(".")[0]
            assert top == "kmlab" or top in sys.stdlib_module_names, found


def test_each_library_that_reaches_out_has_one_file() -> None:
    for found in all_imports():
        library = found.name.split(".")[0]
        if library in ONLY_IN and not found.typing_only:
            assert found.file in ONLY_IN[library], found


def test_only_the_api_builds_the_real_host() -> None:
    wrong = [str(found) for found in all_imports() if found.name.endswith("host.real_host")]
    assert [text.split(":")[0] for text in wrong] == ["kmlab/api.py"]


def test_all_but_its_own_worker_imports_without_libvirt() -> None:
    names = [
        ".".join(("kmlab", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")
        for path in files()
        if path.name not in ("libvirt_worker.py", "__main__.py")
    ]
    program = (
        "import sys, importlib\n"
        "for name in ('libvirt', 'libvirt_qemu', 'paramiko', 'pycdlib'): sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_no_program_is_run_through_a_shell() -> None:
    for path in files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell" or ast.unparse(node.value) != "True", f"{path.name}: {node.arg}"


def test_every_thread_has_its_reason_on_the_page() -> None:
    page = (HOUSE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Threads and globals")[1]
    starts = {
        str(path.relative_to(HOUSE))
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread"
    }
    assert {file for file in starts if f"`{file}`" not in page} == set()
