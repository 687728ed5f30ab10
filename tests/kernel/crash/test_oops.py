"""Every saved log of tests/data/oops is judged as its own header says.

A log begins with lines `# expect: KEY: VALUE`, not part of it. The keys are `count` (findings in all; without it, as
many as are described), `own` (the modules under test, comma-separated), `ko` (its file in tests/data/ko/crashers, with
which lines are found), `at` (where its sections were), `booted` (yes: the log begins in a running kernel) and any field
of a Crash: kind, class, title, function, module, file, line, task, pid, cpu, fatal and truncated (yes, no), sections
(names, comma-separated), places (of some sections, NAME=FUNCTION:LINE), fingerprint. `none` stands for an absent value.
`and:` begins the next finding. A log with `count: 0` is benign.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.kernel.crash.crash import Crash, benign_note, lockdep_off, outcome_of
from kmlab.kernel.crash.parser.scanner import Scanner, find_crashes
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.log.records import ConsoleReader, Record, parse_log
from tests.crashers import BUILT
from tests.places import TEST_DATA

CORPUS = sorted((TEST_DATA / "oops").glob("*.txt"))


class Sample(NamedTuple):
    """A saved log and what must be found in it."""

    data: bytes
    total: int
    own: frozenset[str]
    booted: bool
    findings: list[dict[str, str]]
    images: dict[str, bytes]
    """The module that the log is of, where we have it."""
    sections: dict[str, dict[str, int]]


def read_sample(path: Path) -> Sample:
    lines = path.read_bytes().splitlines(keepends=True)
    findings: list[dict[str, str]] = [{}]
    options: dict[str, str] = {}
    while lines and lines[0].startswith(b"# expect:"):
        key, _, value = lines.pop(0).decode().removeprefix("# expect:").partition(":")
        key, value = key.strip(), value.strip()
        if key == "and":
            findings.append({})
        elif key in ("count", "own", "booted", "ko", "at"):
            options[key] = value
        else:
            findings[-1][key] = value
    count = int(options.get("count", len(findings)))
    own = frozenset(filter(None, (m.strip() for m in options.get("own", "").split(","))))
    images = {f"{','.join(own)}.ko": (BUILT / options["ko"]).read_bytes()} if "ko" in options else {}
    places = dict(word.split("=") for word in options.get("at", "").split())
    sections = {",".join(own): {name: int(at, 16) for name, at in places.items()}} if places else {}
    return Sample(b"".join(lines), count, own, options.get("booted") == "yes", findings, images, sections)


def judge(sample: Sample, data: bytes | None = None) -> list[Crash]:
    found = find_crashes(parse_log(sample.data if data is None else data).records, sample.own, sample.booted)
    return [place(sample, crash) for crash in found]


def place(sample: Sample, crash: Crash) -> Crash:
    return located(crash, sample.images, None, sample.sections) if sample.images else crash


def shown(crash: Crash, key: str, expected: str) -> str:
    if key == "sections":
        return ",".join(s.name for s in crash.sections)
    if key == "places":
        places = {s.name: s.place(crash.module) for s in crash.sections}
        named = {name: f"{name}={place.name}:{place.line}" for name, place in places.items() if place}
        return re.sub(r"([^,=]+(?:, [^,=]+)?)=[^,]*", lambda found: named.get(found[1], ""), expected)
    value = getattr(crash, "class_" if key == "class" else key)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_a_saved_log_is_judged_as_its_header_says(path: Path) -> None:
    sample = read_sample(path)
    crashes = judge(sample)
    assert len(crashes) == sample.total, [c.title for c in crashes]
    if sample.total == 0:
        return
    for crash, expected in zip(crashes, sample.findings, strict=False):
        assert {key: shown(crash, key, expected[key]) for key in expected} == expected, crash.text


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_a_log_fed_byte_by_byte_is_judged_the_same(path: Path) -> None:
    sample = read_sample(path)
    reader, scanner = ConsoleReader(pasted=True), Scanner(sample.own, sample.booted)
    said: list[Crash] = []
    scattered: list[Record] = []
    for byte in sample.data:
        records = reader.feed(bytes([byte]))
        if records:
            scattered += records
            said += scanner.feed(records)
    scattered += (last := reader.close())
    said += scanner.feed(last)
    said += scanner.close()
    # A log without prefixes can only be recognised as one when all of it is there.
    bare = not any(record.prefixed for record in scattered)
    expected = [] if bare else judge(sample)
    assert [place(sample, crash) for crash in scanner.crashes] == expected
    assert len(said) == len(expected)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_no_title_has_an_address_a_process_or_a_cpu_in_it(path: Path) -> None:
    for crash in judge(read_sample(path)):
        assert not re.search(r"0x[0-9a-f]|\b[0-9a-f]{8,}\b|CPU#?\d|:\d|\+0x|\bpid\b", crash.title), crash.title
        assert "\n" not in crash.title
        assert outcome_of(crash) in ("panic", "oops", "warning", "hang")
        assert outcome_of(crash) == crash.kind


def test_the_corpus_covers_both_architectures_and_clean_boots() -> None:
    names = [p.stem for p in CORPUS]
    assert len(names) >= 45
    assert sum(n.startswith("arm64") for n in names) >= 8
    assert sum(read_sample(p).total == 0 for p in CORPUS) >= 4


def sample(name: str) -> Sample:
    return next(read_sample(p) for p in CORPUS if p.stem == name)


def one(name: str) -> Crash:
    (crash,) = judge(sample(name))
    return crash


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("bug-6.1", "bug-6.12"),
        ("gpf-6.1", "gpf-6.12"),
        ("divide-6.1", "divide-6.12"),
        ("warn-6.12", "warn-7.0"),
        ("warn-6.12", "warn-6.19"),
        ("null-deref-init-6.1", "arm64-null-deref"),
        ("null-deref-init-6.1", "null-deref-then-panic"),
        ("soft-lockup-6.1", "rcu-stall-self"),
        ("soft-lockup-6.1", "arm64-soft-lockup"),
        ("format-kmsg", "format-journal"),
    ],
)
def test_one_bug_has_the_same_fingerprint_on_another_kernel(here: str, there: str) -> None:
    assert one(here).fingerprint == one(there).fingerprint


def test_different_bugs_have_different_fingerprints() -> None:
    assert one("bug-6.1").fingerprint != one("null-deref-init-6.1").fingerprint
    assert one("null-deref-init-6.1").fingerprint != one("null-deref-read-6.12").fingerprint


def test_the_rip_line_is_exact_and_the_other_frames_are_return_addresses() -> None:
    crash = one("null-deref-init-6.1")
    assert crash.frames[0][:6] == ("nullinit_init", 0x12, 0x1000, "nullinit", True, True)
    assert not any(f.exact for f in crash.frames[1:])
    guess = next(f for f in crash.frames if f.function == "__die")
    assert not guess.reliable
    assert [f.function for f in crash.frames].count("nullinit_init") == 1, "the summary after the end is no frame"


def test_a_call_through_null_is_the_callers_fault() -> None:
    crash = one("null-call-init")
    assert crash.frames[0].function == "0x0"
    assert (crash.function, crash.frames[1].exact) == ("callnull_init", False)


def test_the_allocation_and_the_free_stay_with_a_kasan_report() -> None:
    crash = one("kasan-uaf")
    freed = next(s for s in crash.sections if s.name == "freed")
    assert "kas_drop" in [f.function for f in freed.frames]
    assert "kas_drop" not in [f.function for f in crash.frames]


def test_a_section_tells_whose_stack_it_is_and_when_that_was() -> None:
    allocated, freed, work = one("kasan-work-creation-6.12").sections
    assert (allocated.pid, allocated.cpu, allocated.time, allocated.task) == (512, 1, 53.123456, None)
    assert (freed.pid, work.pid) == (16, None)
    allocated, freed = one("kfence-uaf-lines-6.12").sections
    assert (allocated.task, allocated.pid, freed.time) == ("insmod", 931, 53.01809)
    allocated, freed = one("slub-validate-5.10").sections
    assert (allocated.age, allocated.cpu, allocated.pid, freed.age) == (33, 0, 512, 83)
    first, second = one("kcsan-marked-6.12").sections
    assert (first.pid, first.cpu, second.pid, second.cpu) == (902, 0, None, 1)


def test_each_lock_of_a_chain_is_a_section_with_the_place_where_it_was_taken() -> None:
    crash = one("lockdep-circular")
    places = {s.name: s.place(crash.module) for s in crash.sections}
    assert {name: place.name for name, place in places.items() if place} == {
        "#1 lock_b": "abba_a",
        "#0 lock_a": "abba_b",
    }


def test_lockdep_s_report_about_kmemleak_s_messages_is_kept_apart() -> None:
    scanner = Scanner()
    scanner.feed(parse_log(sample("kmemleak-alias-then-lockdep-6.1").data).records)
    scanner.close()
    assert [crash.class_ for crash in scanner.benign] == ["lockdep-circular"]
    assert "kmemleak" in benign_note(scanner.benign[0])


def test_a_cycle_of_a_module_s_own_lock_and_kmemleak_s_is_a_finding() -> None:
    lines = sample("kmemleak-alias-then-lockdep-6.1").data.splitlines(keepends=True)
    data = b"".join(lines[next(number for number, line in enumerate(lines) if b"] =====" in line) :])
    assert find_crashes(parse_log(data).records) == []
    mine = data.replace(b"(console_owner){-.-.}-{0:0}, at: console_emit", b"(gate_lock){-.-.}-{2:2}, at: gate_drop")
    assert [crash.class_ for crash in find_crashes(parse_log(mine).records)] == ["lockdep-circular"]


def test_lockdep_is_off_after_its_own_report_alone() -> None:
    assert "possible circular" in (lockdep_off([one("warn-6.1"), one("lockdep-circular")]) or "")
    assert lockdep_off([one("warn-6.1"), one("rcu-usage"), one("kasan-uaf")]) is None


def test_the_modules_under_test_are_blamed_before_others() -> None:
    text = sample("null-deref-read-6.12").data.replace(b"proc_reg_read+0x5a/0xa0", b"outer_read+0x5a/0xa0 [outer]")
    records = parse_log(text).records
    assert find_crashes(records)[0].function == "null_read"
    assert find_crashes(records, frozenset({"outer"}))[0].function == "outer_read"


def test_a_bug_in_the_kernel_alone_is_blamed_on_what_called_the_helper() -> None:
    crash = one("panic-no-root")
    assert (crash.function, crash.module) == ("mount_block_root", None)


def test_a_panic_after_an_oops_is_not_a_second_finding_even_when_it_comes_late() -> None:
    records = list(parse_log(sample("null-deref-init-6.1").data).records)
    late = (records[-3].time or 0) + 4
    panic = Record(late, "emerg", "Kernel panic - not syncing: Fatal exception", "T512", 0)
    (crash,) = find_crashes([*records, panic])
    assert crash.fatal
    assert crash.kind == "panic"
    assert crash.title == "BUG: kernel NULL pointer dereference in nullinit_init"


def test_a_panic_of_its_own_after_a_warning_is_a_second_finding() -> None:
    data = sample("warn-6.1").data + sample("panic-called").data
    assert [c.class_ for c in find_crashes(parse_log(data).records)] == ["warning", "panic"]


def test_a_truncated_oops_is_marked() -> None:
    assert one("truncated-oops").truncated
    assert not one("null-deref-init-6.1").truncated


def test_messages_lost_within_a_report_make_it_truncated() -> None:
    lines = sample("null-deref-init-6.1").data.split(b"\r\n")
    middle = next(i for i, line in enumerate(lines) if b"Call Trace" in line)
    lines.insert(middle, b"** 12 printk messages dropped **")
    log = parse_log(b"\r\n".join(lines))
    assert log.dropped == 12
    assert find_crashes(log.records)[0].truncated


def test_a_watcher_sees_a_panic_before_the_finding_is_settled() -> None:
    data = sample("null-deref-then-panic").data
    scanner, reader = Scanner(), ConsoleReader()
    before, _, after = data.partition(b"Kernel panic - ")
    scanner.feed(reader.feed(before))
    assert scanner.suspect
    assert not scanner.panicked
    head, _, tail = after.partition(b"---[ end Kernel panic")
    scanner.feed(reader.feed(b"Kernel panic - " + head))
    assert scanner.panicked
    assert not scanner.panic_complete
    scanner.feed(reader.feed(b"---[ end Kernel panic" + tail))
    assert scanner.panic_complete


def test_a_finished_report_is_told_while_the_log_goes_on() -> None:
    scanner = Scanner()
    records = parse_log(sample("warn-6.1").data).records
    assert scanner.feed(records) == []
    later = Record((records[-1].time or 0) + 60, "info", "larva: still alive", None, 0)
    assert [c.class_ for c in scanner.feed([later])] == ["warning"]
    assert scanner.close() == []


def test_a_boot_is_a_reboot_only_when_the_kernel_was_up() -> None:
    boot = sample("benign-boot-6.1.0-56-cloud-amd64").data
    records = parse_log(boot).records
    assert find_crashes(records) == []
    assert [c.class_ for c in find_crashes(records, booted=True)] == ["unexpected-reboot"]


def test_a_reboot_after_a_panic_is_no_finding() -> None:
    data = sample("null-deref-then-panic").data + sample("benign-boot-6.1.0-56-cloud-amd64").data
    assert [c.class_ for c in find_crashes(parse_log(data).records)] == ["null-dereference"]


def test_a_machine_that_dies_of_one_bug_in_many_boots_has_one_finding() -> None:
    data = sample("null-deref-init-6.1").data
    assert [c.class_ for c in find_crashes(parse_log(data * 5).records)] == ["null-dereference"]


def test_many_boots_that_end_without_a_word_are_one_finding() -> None:
    boot = sample("benign-boot-6.1.0-56-cloud-amd64").data
    found = find_crashes(parse_log(boot * 4).records)
    assert [c.class_ for c in found] == ["unexpected-reboot"]


def test_a_machine_that_resets_while_it_dies_died_of_that() -> None:
    data = sample("truncated-oops").data + sample("benign-boot-6.1.0-56-cloud-amd64").data
    (crash,) = find_crashes(parse_log(data).records)
    assert (crash.class_, crash.fatal) == ("null-dereference", True)


def test_the_text_of_a_report_that_never_ends_is_capped() -> None:
    endless = b"<1>[    1.000000] BUG: kernel NULL pointer dereference, address: 0\n"
    endless += b"<4>[    1.000000]  f+0x1/0x2 [larva]\n" * 20000
    (crash,) = find_crashes(parse_log(endless).records)
    assert len(crash.text) <= 32768
    assert len(crash.frames) <= 64


def test_what_stands_before_and_behind_a_hundred_thousand_lines_is_found() -> None:
    line = "<6>[%5d.%06d][  T512] larva: line number %d says nothing in particular\r\n"
    flood = "".join(line % (i // 1000, i, i) for i in range(100_000)).encode()
    log = parse_log(sample("null-deref-read-6.12").data + flood + sample("warn-6.1").data)
    assert [c.class_ for c in find_crashes(log.records)] == ["null-dereference", "warning"]


@pytest.mark.parametrize(
    "start",
    [
        "BUG: ",
        "BUG: KASAN: ",
        "WARNING: ",
        "INFO: task ",
        "Oops: ",
        "UBSAN: ",
        "BUG kmalloc (Tainted: ",
        "WARNING: [",
        " [#1",
    ],
)
@pytest.mark.parametrize("rest", ["a", " ", "a ", "0", "/", "(", "[", ":1", "a+0x1/0x2 ", "? ", "-> "])
def test_hostile_lines_cost_no_more_than_others(start: str, rest: str) -> None:
    texts = [
        start + rest * (8000 // len(rest)),
        " " + rest * (8000 // len(rest)) + "+0x",
        "RIP: 0010:" + rest * 800,
    ]
    began = time.process_time()
    find_crashes(Record(1.0, "warn", text, None, 0) for text in texts * 20)
    assert time.process_time() - began < 1


def test_a_flood_of_reports_is_bounded() -> None:
    one_warning = sample("warn-6.1").data
    data = b"".join(one_warning.replace(b"warn_init", b"warn_%d" % i) for i in range(300))
    crashes = find_crashes(parse_log(data).records)
    assert len(crashes) == 100
