"""How make is called for a module's folder, and which of several ways of building is believed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kmlab.common.events import Deadline
from kmlab.config.lab import Make
from kmlab.host.process.sandbox import Sandbox, SandboxResult
from kmlab.kernel.build.dkms import BUILD, READ_CONF
from kmlab.run.build.make import _WITH_COMPILER, build_in_sandbox
from kmlab.run.build.products import BuildResult, modules_of_build
from kmlab.run.build.request import BuildRequest, missing_programs, plain_request
from kmlab.run.build.source_tree import SourceTree
from tests.places import TEST_DATA

KO = (TEST_DATA / "ko/tiny_loop.ko").read_bytes()
RELEASE = "6.1.0-9-amd64"
Answer = Callable[[Path, Sequence[str]], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Box(Sandbox):
    """A sandbox in which each command does what the test says."""

    answer: Answer = lambda folder, words: (0, "")

    def run(self, argv: Sequence[str], *_: Any, **__: Any) -> SandboxResult:
        return SandboxResult(*self.answer(self.folder, list(argv)))


def make_words(argv: Sequence[str]) -> list[str]:
    """The words of the make command in what a sandbox runs."""
    words = list(argv)
    return words[words.index("make") :] if "make" in words else []


def built(tmp_path: Path, files: Mapping[str, str], answer: Answer, **request: Any) -> BuildResult:
    source = tmp_path / "src"
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    box = Box(tmp_path, tmp_path / "builds/m", "m", answer=answer)
    asked = BuildRequest("m", SourceTree(source), **request) if request else plain_request("m", source)
    return build_in_sandbox(box, asked, RELEASE, Deadline(60), lambda line: None)


WRAPPER = "all: modules\nmodules:\n\t$(MAKE) -C $(KDIR) M=$(PWD)/drv modules\n"


def test_variables_target_and_jobs_are_the_user_s(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        seen.append(make_words(words))
        (folder / "m.ko").write_bytes(KO)
        return 0, ""

    make = Make(variables={"KSRC": "/x y", "LLVM": "1"}, target="modules", jobs=3)
    assert built(tmp_path, {"Kbuild": "obj-m := m.o\n"}, answer, make=make).ok
    assert seen[0][-4:] == ["KSRC=/x y", "LLVM=1", "modules", "-j3"]


@pytest.mark.parametrize("parts", ["clean modules", "clean modules install", "modules install", "reinsmod modules"])
def test_a_first_target_whose_parts_step_on_one_another_gets_one_job(tmp_path: Path, parts: str) -> None:
    seen: list[list[str]] = []

    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        seen.append(make_words(words))
        (folder / "m.ko").write_bytes(KO)
        return 0, ""

    text = WRAPPER.replace("all: modules", f".PHONY: all\n\nall: {parts}")
    assert built(tmp_path, {"Makefile": text}, answer).ok
    assert seen[0][:2] == ["make", "-j1"]


def test_make_is_tried_again_with_one_job_if_it_made_nothing(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        if "-j1" in words:
            (folder / "m.ko").write_bytes(KO)
        return 0, ""

    assert built(tmp_path, {"Makefile": WRAPPER}, answer, make=Make(jobs=4)).ok


def test_an_error_in_a_source_is_no_reason_to_try_again(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        calls.append(make_words(words))
        return 2, "/var/lib/kmlab/modules/m/a.c:3:1: error: expected ';'\n"

    assert not built(tmp_path, {"Makefile": WRAPPER}, answer, make=Make(jobs=4)).ok
    assert len([call for call in calls if call]) == 1


def test_what_got_furthest_is_reported_with_its_log(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        if "-C" in make_words(words):
            return 2, "make: *** No rule to make target 'x.o'.  Stop.\n"
        return 2, "  CC [M]  a.o\n  CC [M]  b.o\n/var/lib/kmlab/modules/m/b.c:7:1: error: no such thing\n"

    result = built(tmp_path, {"Makefile": "obj-m := x.o\nall:\n\t$(MAKE) -C /k M=$(PWD)\n"}, answer)
    assert "b.c:7" in (result.reason or "") and "CC [M]" in result.log and result.how.startswith("its own make")
    assert [d.file for d in result.diagnostics] == ["b.c"]


@pytest.mark.parametrize("target", ["install", "modules_install", "modules-install", "load", "reload"])
def test_modules_that_only_could_not_be_put_away_are_built(tmp_path: Path, target: str) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        (folder / "m.ko").write_bytes(KO)
        return 2, f"cp: cannot create regular file: Read-only file system\nmake: *** [Makefile:9: {target}] Error 1\n"

    assert built(tmp_path, {"Makefile": WRAPPER}, answer).ok


def test_modules_of_a_build_that_failed_are_not_believed(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        (folder / "m.ko").write_bytes(KO)
        return 2, "make: *** [Makefile:9: modules] Error 1\n"

    assert not built(tmp_path, {"Makefile": WRAPPER}, answer).ok


def test_the_order_of_modules_order_is_kept() -> None:
    files = {"a.ko": b"", "b.ko": b"", "c/d.ko": b"", "modules.order": b"/m/c/d.o\n/m/b.o\n/m/a.o\n"}
    assert list(modules_of_build(files)) == ["c/d.ko", "b.ko", "a.ko"]


# --- beside the module --------------------------------------------------------------------------------------------


def test_a_program_that_the_exercise_names_is_built_by_the_folder_s_makefile(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        if "modules" in words:
            (folder / "m.ko").write_bytes(KO)
        elif words[:2] == ["sh", "-c"]:
            (folder / "user").mkdir(exist_ok=True)
            (folder / "user/test").write_bytes(b"\x7fELF")
            (folder / "user/test").chmod(0o755)
        return 0, ""

    files = {"Kbuild": "obj-m := m.o\n", "Makefile": "all:\n\tmake -C user\n", "user/test.c": "int main(void) {}\n"}
    result = built(tmp_path, files, answer, exercise="user/test --all")
    assert result.ok and set(result.undelivered) == {"m.ko", "user/test"}
    assert set(built(tmp_path, files, answer).undelivered) >= {"m.ko"}


def test_what_an_exercise_and_its_scripts_name_is_looked_for() -> None:
    from kmlab.run.build.source_folder import Entry

    there = {"check.sh": Entry("file", 0o755, 1, 1)}
    assert missing_programs("./check.sh && ./user/test -v", there, ()) == ["user/test"]
    assert missing_programs("$PWD/prog; cat /proc/x; ls ../y; echo a/b.c", there, ["prog"]) == ["a/b.c"]
    assert missing_programs("dmesg | grep hello", there, ()) == []


# --- before make ------------------------------------------------------------------------------------------------


def test_prepare_runs_once_for_each_state_of_the_sources(tmp_path: Path) -> None:
    prepared: list[str] = []

    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        if words == ["sh", "-c", "./configure --with-linux=$KDIR"]:
            prepared.append(words[2])
        (folder / "m.ko").write_bytes(KO)
        return 0, ""

    files = {"Makefile.in": "all:\n", "configure": "#!/bin/sh\n"}
    for each in (files, {}):
        assert built(tmp_path, each, answer, prepare="./configure --with-linux=$KDIR").ok
    assert len(prepared) == 1
    (tmp_path / "src/configure").write_text("#!/bin/sh\n# changed\n")
    assert built(tmp_path, {}, answer, prepare="./configure --with-linux=$KDIR").ok
    assert len(prepared) == 2


def test_a_prepare_that_fails_ends_the_build_and_names_the_tool_that_is_missing(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        assert "make" not in words
        return 127, "sh: 1: autoreconf: not found\n"

    result = built(tmp_path, {"Makefile": WRAPPER}, answer, prepare="autoreconf -i")
    assert not result.ok and result.how.startswith("prepare")
    assert "autoreconf" in (result.reason or "") and "packages: [autoconf]" in (result.reason or "")


# --- the compiler -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "programs", "added"),
    [
        ("CONFIG_CC_IS_GCC=y\n", (), ""),
        ("CONFIG_CC_IS_CLANG=y\nCONFIG_CLANG_VERSION=180103\n", (), "LLVM=1"),
        ("CONFIG_CC_IS_CLANG=y\nCONFIG_CLANG_VERSION=180103\n", ("clang-18", "ld.lld-18"), "LLVM=-18"),
        (None, (), ""),
    ],
)
def test_a_kernel_of_clang_gets_modules_of_clang(
    tmp_path: Path, config: str | None, programs: Sequence[str], added: str
) -> None:
    for name in ("make", *programs):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    if config is not None:
        (tmp_path / "config").write_text(config)
    said = subprocess.run(
        ["sh", "-c", _WITH_COMPILER, "sh", tmp_path / "config", "make", "a b", "-j2"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"a b -j2 {added}".strip()


# --- dkms.conf ----------------------------------------------------------------------------------------------------

DKMS = """\
PACKAGE_NAME=tiny
PACKAGE_VERSION=2
BUILT_MODULE_NAME[0]=tiny_loop
BUILT_MODULE_LOCATION[0]=src
DEST_MODULE_LOCATION[0]=/updates
"""


def dkms_answer(made: str | None = "src/tiny_loop.ko", code: int = 0, log: str = "") -> Answer:
    """A sandbox that reads dkms.conf for real, and whose build leaves one file."""

    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        if words[0] == "cat":
            return 1, "no such file"
        if words[2] == READ_CONF:
            said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            return said.returncode, said.stdout
        assert words[2] == BUILD
        place = folder / ".kmlab/dkms/tiny/2/build" / (made or "nothing.o")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(KO)
        return code, log

    return answer


def test_a_folder_with_a_dkms_conf_is_built_as_dkms_builds_it(tmp_path: Path) -> None:
    result = built(tmp_path, {"dkms.conf": DKMS, "src/Makefile": "obj-m := tiny_loop.o\n"}, dkms_answer())
    assert result.ok and result.how.startswith("dkms.conf")
    assert list(result.images) == [".kmlab/dkms/tiny/2/build/src/tiny_loop.ko"]
    assert result.paths == "src/tiny_loop.ko" and set(result.undelivered) == set(result.images)


def test_a_module_that_dkms_conf_promises_and_make_does_not_leave_is_a_failure(tmp_path: Path) -> None:
    result = built(tmp_path, {"dkms.conf": DKMS}, dkms_answer(made="tiny_loop.ko"))
    assert not result.ok and "src/tiny_loop.ko is not there" in (result.reason or "")


def test_errors_of_such_a_build_are_in_the_author_s_files(tmp_path: Path) -> None:
    log = "/var/lib/kmlab/modules/m/.kmlab/dkms/tiny/2/build/src/a.c:3:1: error: nothing like it\n"
    result = built(tmp_path, {"dkms.conf": DKMS}, dkms_answer(code=2, log=log))
    assert [d.file for d in result.diagnostics] == ["src/a.c"] and "src/a.c:3" in (result.reason or "")


def test_a_kernel_that_dkms_conf_rules_out_is_skipped(tmp_path: Path) -> None:
    result = built(tmp_path, {"dkms.conf": DKMS + "BUILD_EXCLUSIVE_KERNEL='^5'\n"}, dkms_answer())
    assert not result.ok and result.skipped and "BUILD_EXCLUSIVE_KERNEL" in (result.reason or "")


def test_a_package_that_must_come_first_is_named(tmp_path: Path) -> None:
    result = built(tmp_path, {"dkms.conf": DKMS + "BUILD_DEPENDS[0]=spl\n"}, dkms_answer())
    assert not result.ok and not result.skipped and "needs the DKMS package spl" in (result.reason or "")


def test_make_in_lab_yaml_is_stronger_than_dkms_conf(tmp_path: Path) -> None:
    def answer(folder: Path, words: Sequence[str]) -> tuple[int, str]:
        assert "bash" not in words
        (folder / "m.ko").write_bytes(KO)
        return 0, ""

    assert built(tmp_path, {"dkms.conf": DKMS, "Kbuild": "obj-m := m.o\n"}, answer, make=Make(jobs=2)).ok
