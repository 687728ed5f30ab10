"""The script for gdb, tried with the real gdb: symbols at their addresses, quoting, nothing that a file could run."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.debugger import session
from kmlab.debugger.gdb_script import LoadedModule, Target, add_symbols, parse_sections, script
from kmlab.debugger.kernel_symbols import KernelSymbols, parse_symbols, write_symbols
from kmlab.kernel.symbols.elf import read_object
from tests.places import TEST_DATA

KO = TEST_DATA / "ko" / "frames.ko"
TEXT = 0xFFFFFFFFC0261000
KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81001230 t do_init_module
ffffffff81001230 t do_init_module
ffffffff81200000 T _etext
ffffffff82000000 D jiffies
ffffffff82000008 d weird.name.0
ffffffffc0261000 t hello_init\t[hello]
"""


def gdb(*commands: str, flags: tuple[str, ...] = ()) -> str:
    """What the real gdb says, without a person's own settings."""
    argv = ["gdb", "-nx", "-q", "-batch", *flags, *(word for line in commands for word in ("-ex", line))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


def test_the_kernel_s_symbols_are_those_of_the_kernel_alone() -> None:
    symbols = parse_symbols(KALLSYMS)
    assert symbols is not None and symbols.start == 0xFFFFFFFF81000000
    assert symbols.code["do_init_module"] == 0xFFFFFFFF81001230
    assert symbols.data == {"jiffies": 0xFFFFFFFF82000000, "weird.name.0": 0xFFFFFFFF82000008}
    assert "hello_init" not in symbols.code


@pytest.mark.parametrize("table", ["", "garbage\n", "0000000000000000 T _text\n", 'ffffffff81000000 T "; .incbin "x\n'])
def test_a_table_without_addresses_has_no_symbols(table: str) -> None:
    assert parse_symbols(table) is None


def test_gdb_finds_the_kernel_s_functions_and_data(tmp_path: Path) -> None:
    symbols = parse_symbols(KALLSYMS)
    assert symbols is not None
    file = write_symbols(symbols, tmp_path)
    assert file is not None
    said = gdb(
        f"add-symbol-file {file} {symbols.start:#x}",
        "info symbol 0xffffffff81001234",
        "info address do_init_module",
        "print &jiffies",
        "break do_init_module",
    )
    assert "do_init_module + 4 in section .text" in said
    assert "0xffffffff82000000" in said
    assert "Breakpoint 1 at 0xffffffff8100123" in said
    assert not (tmp_path / "kernel.s").exists()


def test_gdb_has_a_module_s_symbols_where_its_sections_are(tmp_path: Path) -> None:
    file = tmp_path / 'a "b" c\\d.ko'
    file.write_bytes(KO.read_bytes())
    section = read_object(KO.read_bytes(), "frames.ko").find(".text")
    assert section is not None
    said = gdb(
        "set confirm off",
        add_symbols(file, {".text": TEXT, ".init.text": TEXT + 0x5000, ".data": TEXT + 0x9000, "; shell id": 1}),
        f"info symbol {TEXT + 0x5000:#x}",
        f"info line *{TEXT:#x}",
    )
    assert "in section .init.text" in said
    assert "/module/frames/main.c" in said
    assert "uid=" not in said


def test_the_guest_s_words_about_sections_are_checked() -> None:
    listed = (
        "/sys/module/x/sections/.text:0xffffffffc0261000\n"
        "/sys/module/x/sections/.data:0x0000000000000000\n"
        "/sys/module/x/sections/.a; shell id:0xffffffffc0261000\n"
        "/sys/module/x/sections/.b:0xffffffffc0261000; shell id\n"
        "nonsense\n"
    )
    assert parse_sections(listed) == {".text": TEXT}


def test_the_script_connects_first_and_names_each_folder_and_file(tmp_path: Path) -> None:
    text = script(
        Target(
            arch="x86_64",
            socket=tmp_path / "socket",
            kernel=tmp_path / "kernel.o",
            kernel_at=0xFFFFFFFF81000000,
            modules=[LoadedModule("hello", tmp_path / "hello.ko", {".text": TEXT})],
            sources={PurePosixPath("/var/lib/kmlab/modules/hello"): tmp_path / "my hello"},
            stop_at_load=("hello", tmp_path / "hello.ko"),
        )
    )
    lines = text.splitlines()
    assert lines.index(f"target remote {tmp_path}/socket") < lines.index(
        f'add-symbol-file "{tmp_path}/kernel.o" 0xffffffff81000000'
    )
    assert f'set substitute-path "/var/lib/kmlab/modules/hello" "{tmp_path}/my hello"' in lines
    assert f'add-symbol-file "{tmp_path}/hello.ko" {TEXT:#x}' in lines
    assert 'KmlabLoad("do_init_module")' in text and '"(struct module *)$rdi"' in text


def test_the_python_of_the_script_is_python_whatever_the_file_is_called(tmp_path: Path) -> None:
    text = script(
        Target(arch="aarch64", socket=tmp_path / "s", stop_at_load=('a"b', Path('/x/"; os.system("id") #\\')))
    )
    inside = text.split("\npython\n")[1].split("\nend\n")[0]
    compile(inside, "script", "exec")
    assert "$x0" in inside


def test_gdb_runs_nothing_that_a_module_s_file_says(tmp_path: Path) -> None:
    """A module's file comes from the guest, and gdb runs the scripts in its section .debug_gdb_scripts if it may."""
    payload, pwned, file = tmp_path / "payload", tmp_path / "pwned", tmp_path / "frames.ko"
    payload.write_bytes(b"\x04x\nopen('%s', 'w')\n\0" % bytes(pwned))
    subprocess.run(
        ["objcopy", "--add-section", f".debug_gdb_scripts={payload}", str(KO), str(file)], check=True, timeout=60
    )
    load = f"add-symbol-file {file} {TEXT:#x}"
    gdb("set confirm off", "set auto-load safe-path /", load)
    assert pwned.exists(), "the file does what it is meant to do"
    pwned.unlink()
    ready = session._session(Target(arch="x86_64", socket=tmp_path / "s"), tmp_path, ())
    flags = ready.argv[2 : ready.argv.index("-x")]
    assert flags == ("-iex", "set auto-load off", "-iex", "set debuginfod enabled off")
    gdb("set confirm off", "set auto-load safe-path /", load, flags=flags)
    assert not pwned.exists()


def test_a_vmlinux_that_is_none_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"MZ")
    with pytest.raises(ConfigError, match="cannot read this vmlinux"):
        session._offset(tmp_path / "bzImage", 1)
    with pytest.raises(ConfigError, match="has no symbol _text"):
        session._offset(KO, 1)


def test_the_offset_of_a_vmlinux_is_that_of_the_running_kernel(tmp_path: Path) -> None:
    file = write_symbols(KernelSymbols(0x1000, {"_text": 0x1000, "end": 0x1010}, {}), tmp_path)
    assert file is not None
    assert session._offset(file, 0xFFFFFFFF81000000) == 0xFFFFFFFF81000000


def test_what_the_last_run_kept_serves_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    files = paths.GuestFiles(tmp_path / "guest")
    paths.write_json(files.debug / "hello.json", {".text": TEXT, ".data": "x"})
    paths.write_json(files.debug / "gone.json", {".text": 1})
    (files.debug / "hello.ko").write_bytes(KO.read_bytes())
    (tmp_path / "out").mkdir()
    (found,) = session._kept_modules(files, tmp_path / "out")
    assert (found.name, found.sections, found.file.read_bytes()) == ("hello", {".text": TEXT}, KO.read_bytes())
