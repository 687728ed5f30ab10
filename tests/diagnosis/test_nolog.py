"""Saved logs whose lines do not say who wrote them, and files that are no log."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.diagnosis.saved_log import judge_file
from kmlab.kernel.log.records import parse_log
from tests.kernel.crash.test_oops import CORPUS, read_sample
from tests.places import REPOSITORY

NEEDS_PREFIXES = {
    "two-cpus-interleaved": "the CPU that wrote a line",
    "unexpected-reboot": "the clock",
    "benign-from-userspace": "who wrote a line: nobody but programs did",
    "guest-6.1-in_use": "who wrote a line: nobody but kmlab did",
    "guest-6.1-hello": "a name or a time before `Hello, world.`",
    "quoted-info": "how grave a line is: a module only quotes a report",
}


def words_of(log: Path) -> str:
    """The kernel's lines of a log, as `dmesg -t` has them."""
    return "".join(f"{r.text}\n" for r in parse_log(read_sample(log).data).records if r.from_kernel)


def refused(file: Path) -> tuple[str, str]:
    with pytest.raises(ConfigError) as raised:
        judge_file(str(file))
    return raised.value.message, raised.value.hint or ""


@pytest.mark.parametrize("log", [log for log in CORPUS if log.stem not in NEEDS_PREFIXES], ids=lambda log: log.stem)
def test_a_log_whose_prefixes_were_cut_is_judged_as_the_whole_one(log: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(read_sample(log).data)
    (tmp_path / "cut").write_text(words_of(log))
    whole, cut = (judge_file(str(tmp_path / name)).crashes for name in ("whole", "cut"))
    assert [crash.title for crash in cut] == [crash.title for crash in whole]


def test_beside_lines_that_say_who_wrote_them_no_others_are_the_kernel_s(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("Kernel panic - not syncing: says a program\n[    1.000000] hello\n")
    assert judge_file(str(tmp_path / "log")).crashes == ()


def test_what_a_module_says_is_a_log_without_its_times(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("larva: count is 3\nlarva larva.0: probed\nand ready\n")
    assert judge_file(str(tmp_path / "log")).crashes == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"Dear Sir,\nnote: nothing went wrong.\nYours\n", "none of its 3 lines looks like a kernel's"),
        (b"\0\1\2\3" * 5000, "its one line does not look like a kernel's"),
        (b"gcc -c hello.c\nhello.c:3:1: error: no\nmake: *** [all] Error 1\n", "none of its 3 lines looks like"),
        (b"%PDF-1.7\n[    1.000000] a line within\n", "it is a PDF"),
        (b"\x89PNG\r\n\x1a\n", "it is a picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "it is a picture"),
        (b"\x7fELF\x02\x01\x01", "it is an ELF file"),
    ],
)
def test_a_file_that_is_no_log_is_said_to_be_none(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    message, hint = refused(tmp_path / "file")
    assert message.startswith(f"{tmp_path}/file: this is no kernel log: {reason}")
    assert "dmesg > FILE" in hint


def test_the_sources_and_pages_of_a_project_are_no_logs() -> None:
    root = REPOSITORY
    for name in (
        "LICENSE",
        "lab.yaml",
        "pyproject.toml",
        "Makefile",
        "kmlab/diagnosis/saved_log.py",
        "examples/hello/hello.c",
    ):
        assert "looks like a kernel's" in refused(root / name)[0]


def test_a_log_that_is_packed_is_told_how_to_unpack(tmp_path: Path) -> None:
    log = "[    1.000000] hello\n"
    (tmp_path / "kern.log 2.gz").write_bytes(gzip.compress(log.encode()))
    assert refused(tmp_path / "kern.log 2.gz") == (
        f"{tmp_path}/kern.log 2.gz: this is no kernel log: it is compressed by gzip",
        f"zcat '{tmp_path}/kern.log 2.gz' | kmlab crashes -",
    )
    (tmp_path / "log").write_bytes(log.encode("utf-16"))
    assert refused(tmp_path / "log")[1].startswith("iconv --from-code=UTF-16 --to-code=UTF-8 ")
