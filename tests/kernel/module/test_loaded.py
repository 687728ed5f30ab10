"""kmlab.kernel.loaded: what a kernel says of its taint, its modules and their sections."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kmlab.kernel.module.proc_modules import ProcModule, parse_kernel_state, state_files

SAID = """\
==> /proc/sys/kernel/tainted <==
12288

==> /proc/modules <==
larva 16384 2 pupa,imago, Live 0xffffffffc0a1b000 (OE)
stuck 16384 1 - Unloading 0xffffffffc0a16000 (OE-)
new 16384 1 - Loading 0xffffffffc0a15000 (OE+)
stays 16384 1 [permanent], Live 0xffffffffc0a11000 (OE)
fixed 16384 - - Live 0xffffffffc0a01000
8021q 40960 0 - Live 0xffffffffc0a00000

==> /sys/module/larva/sections/.init.text <==
0xffffffffc0a1f000

==> /sys/module/larva/sections/.text <==
0xffffffffc0a1b000

==> /sys/module/larva/sections/.gone <==
0x0000000000000000
"""


def test_each_module_is_listed_with_its_users_and_its_state() -> None:
    seen = parse_kernel_state(SAID)
    assert seen is not None and seen.taint == 12288
    assert seen.modules["larva"] == ProcModule(2, ("pupa", "imago"), "Live", "OE")
    assert seen.modules["stuck"].state == "Unloading" and seen.modules["new"].state == "Loading"
    assert seen.modules["stays"].holders == ("[permanent]",)
    assert seen.modules["fixed"] == ProcModule(None, (), "Live")
    assert seen.out_of_tree == {"larva", "stuck", "new", "stays"}
    assert list(seen.modules) == ["larva", "stuck", "new", "stays", "fixed", "8021q"]


def test_a_section_that_is_hidden_or_gone_has_no_place() -> None:
    seen = parse_kernel_state(SAID)
    assert seen is not None and seen.sections == {".init.text": 0xFFFFFFFFC0A1F000, ".text": 0xFFFFFFFFC0A1B000}


def test_without_a_taint_nothing_was_seen() -> None:
    assert parse_kernel_state("") is None
    assert parse_kernel_state("==> /proc/sys/kernel/tainted <==\nlarva\n") is None
    assert parse_kernel_state(SAID.replace("12288", "")) is None


def test_a_guest_that_says_anything_breaks_nothing() -> None:
    for end in range(len(SAID)):
        seen = parse_kernel_state(SAID[:end])
        assert seen is None or seen.taint <= 12288
    assert parse_kernel_state(SAID + SAID) is not None
    for taint in ("9" * 5000, "\u00b2", "-1"):
        assert parse_kernel_state(SAID.replace("12288", taint)) is None
    seen = parse_kernel_state(SAID.replace("larva 16384 2", f"larva 16384 {'2' * 5000}"))
    assert seen is not None and "larva" not in seen.modules


def test_a_running_kernel_answers_the_question(tmp_path: Path) -> None:
    line = f"tail -n +1 {' '.join(state_files('no-such-module'))} 2> /dev/null"
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    seen = parse_kernel_state(said.stdout)
    assert seen is not None
    assert seen.taint == int(Path("/proc/sys/kernel/tainted").read_text())
    loaded = Path("/proc/modules").read_text() if Path("/proc/modules").exists() else ""
    assert set(seen.modules) == {line.split()[0] for line in loaded.splitlines()}
