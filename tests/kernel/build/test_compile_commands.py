"""What an editor reads about a module's sources: from kbuild's notes, and nothing that would run a program."""

from __future__ import annotations

import pytest

from kmlab.kernel.build.compile_commands import Entry, entry, parse_command

INSIDE = "/var/lib/kmlab/modules/hello"
HEADERS = "/usr/src/linux-headers-6.1.0-56-cloud-amd64"
FOLDERS = {"/usr/src": "/cache/root/usr/src", "/usr/lib": "/cache/root/usr/lib", INSIDE: "/home/me/hello"}
WORDS = (
    *(f"gcc-12 -Wp,-MMD,{INSIDE}/.hello.o.d -nostdinc", "-I/usr/src/linux-headers-6.1.0-56-common/include"),
    *("-I./include", "-include /usr/src/linux-headers-6.1.0-56-common/include/linux/kconfig.h", "-D__KERNEL__"),
    *("-fshort-wchar -mpreferred-stack-boundary=3 -mno-sse -m64 -std=gnu11", "-fplugin=/tmp/evil.so"),
    *("-Wall -B/tmp @/tmp/more", f"-I{INSIDE}/../../../../etc -I/etc -specs=/tmp/x -DMODULE"),
    *(" -DKBUILD_MODNAME='\"hello\"' -D'X=a b'", f"-c -o {INSIDE}/hello.o {INSIDE}/hello.c"),
)
CMD = f"cmd_{INSIDE}/hello.o := {' '.join(WORDS)}\n\nsource_{INSIDE}/hello.o := {INSIDE}/hello.c\n"


def test_a_note_of_kbuild_becomes_an_entry_with_this_host_s_paths() -> None:
    made = entry(parse_command(CMD), HEADERS, FOLDERS)
    assert made == Entry(
        directory="/cache/root/usr/src/linux-headers-6.1.0-56-cloud-amd64",
        file="/home/me/hello/hello.c",
        arguments=(
            *("cc", "-nostdinc"),
            *("-I", "/cache/root/usr/src/linux-headers-6.1.0-56-common/include"),
            *("-I", "/cache/root/usr/src/linux-headers-6.1.0-56-cloud-amd64/include"),
            *("-include", "/cache/root/usr/src/linux-headers-6.1.0-56-common/include/linux/kconfig.h"),
            *("-D__KERNEL__", "-fshort-wchar", "-m64", "-std=gnu11", "-Wall"),
            *("-DMODULE", '-DKBUILD_MODNAME="hello"', "-DX=a b"),
            *("-Wno-unknown-warning-option", "-c", "/home/me/hello/hello.c"),
        ),
    )


def test_nothing_that_loads_or_runs_something_is_kept() -> None:
    made = entry(parse_command(CMD), HEADERS, FOLDERS)
    assert made is not None
    for word in ("-fplugin=/tmp/evil.so", "-B/tmp", "@/tmp/more", "-specs=/tmp/x", "/etc"):
        assert word not in made.arguments


def test_newer_kernels_call_the_note_savedcmd_and_go_on_with_objtool() -> None:
    text = CMD.replace("cmd_", "savedcmd_", 1).replace("hello.c\n\nsource", "hello.c ; ./tools/objtool --x\n\nsource")
    assert entry(parse_command(text), HEADERS, FOLDERS) == entry(parse_command(CMD), HEADERS, FOLDERS)


@pytest.mark.parametrize(
    "text",
    ["", "cmd_x.o := ld -r -o x.o y.o", "cmd_x := gcc -c 'unfinished", "cmd_x := gcc -c /etc/passwd.c", "x" * 99],
)
def test_a_note_of_no_c_file_has_no_entry(text: str) -> None:
    assert entry(parse_command(text), HEADERS, FOLDERS) is None


def test_a_sign_that_make_must_not_see_is_itself_again() -> None:
    words = parse_command("cmd_a.o := gcc -DA='$(pound)' -DB=\\# -DC='$$x' -c a.c\n")
    assert words == ["gcc", "-DA=#", "-DB=#", "-DC=$x", "-c", "a.c"]
