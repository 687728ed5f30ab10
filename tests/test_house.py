"""The house stays as it is drawn: who may import whom, who prints, who touches the world."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import kmlab

HOUSE = Path(kmlab.__file__).parent

STOREYS = (
    # The ground: the standard library alone.
    ("errors",),
    ("events", "trees"),
    ("store",),
    # The one reader of YAML.
    ("yamltree",),
    ("yamlshape",),
    ("yamltypes",),
    ("yamlfile",),
    # What was asked for; the doors; what is known of kernels.
    ("lab", "catalog", "host", "kernel"),
    ("virt", "guest", "options", "starter"),
    ("signing",),
    # A run's acts, and what they come to.
    ("provision", "module", "collect"),
    ("result", "build", "postmortem"),
    ("ahead", "meant"),
    ("steps",),
    ("run", "judge", "report", "cache", "timeline", "grid", "enrolment"),
    ("many", "securematrix"),
    ("watch",),
    # Imported by nobody.
    ("cli", "testing"),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
ONLY_IN = {
    "libvirt": {"host/libvirt_worker.py"},
    "libvirt_qemu": {"host/libvirt_worker.py"},
    "paramiko": {"host/ssh.py"},
    "pycdlib": {"host/disks.py"},
    "subprocess": {"host/command.py"},
    "rich": {"cli/progress.py", "cli/screen.py"},
    "watchfiles": {"host/saves.py"},
    "urllib3": {"host/download.py"},
}
GROUND = ("errors", "events", "trees", "store")
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
    """The room of the house that a file is in: its package, or itself."""
    first = Path(file).parts[0]
    return first.removesuffix(".py")


def target(name: str) -> str | None:
    """The room that an import goes to; None outside of the house."""
    words = name.split(".")
    if words[0] != "kmlab" or words[1:2] == ["__version__"]:
        return None
    return words[1] if len(words) > 1 else None


def test_every_file_has_a_floor() -> None:
    rooms = {room(str(path.relative_to(HOUSE))) for path in files()} - {"__init__"}
    assert rooms <= set(FLOOR), "a new room: give it a floor here and in ARCHITECTURE.md"


def test_arrows_only_go_down_a_floor() -> None:
    wrong = []
    for found in all_imports():
        here, there = room(found.file), target(found.name)
        if there is not None and there != here and FLOOR[there] >= FLOOR[here]:
            wrong.append(str(found))
    assert wrong == []


def test_cli_is_imported_by_nobody_and_alone_imports_typer() -> None:
    for found in all_imports():
        here = room(found.file)
        if here not in ("cli", "__main__"):
            assert target(found.name) not in {"cli", "testing"} - {here}, found
        if here != "cli":
            assert found.name.split(".")[0] not in ("typer", "click"), found


def test_only_render_prints_and_progress_beside_it() -> None:
    # The worker's stdout is its side of a conversation, and the terminal is the person's own while they are joined.
    allowed = {"cli/render.py", "cli/progress.py", "host/libvirt_worker.py", "host/terminal.py"}
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
        if room(found.file) in pillars and target(found.name) in pillars - {room(found.file)}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["kernel", "virt"])
def test_what_thinks_touches_no_file_and_no_clock(package: str) -> None:
    wrong = []
    for path in sorted((HOUSE / package).rglob("*.py")):
        for found in imports(path):
            if found.name.split(".")[0] in OUTSIDE or target(found.name) == "store":
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
        if found.file in ("lab.py", "catalog.py"):
            there = target(found.name)
            assert there is None or there in ("errors", "events") or there.startswith("yaml"), found


def test_the_ground_is_the_standard_library_alone() -> None:
    for found in all_imports():
        if room(found.file) in GROUND:
            top = found.name.split(".")[0]
            assert top == "kmlab" or top in sys.stdlib_module_names, found


def test_each_library_that_reaches_out_has_one_file() -> None:
    for found in all_imports():
        library = found.name.split(".")[0]
        if library in ONLY_IN and not found.typing_only:
            assert found.file in ONLY_IN[library], found


def test_only_the_app_builds_the_real_host() -> None:
    wrong = [str(found) for found in all_imports() if found.name.endswith("host.real_host")]
    assert [text.split(":")[0] for text in wrong] == ["kmlab/cli/app.py"]


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
