"""A log is judged the same however it was saved, quoted, wrapped or sent."""

from __future__ import annotations

import html
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kmlab.diagnosis.saved_log import JudgedLog, hear, judge_file
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.paste import Rejoiner, is_wrapped, runs_backwards
from kmlab.kernel.log.records import ConsoleReader, Record, parse_log
from tests.diagnosis.test_nolog import NEEDS_PREFIXES, words_of
from tests.kernel.crash.test_oops import CORPUS
from tests.places import TEST_DATA

PASTED = TEST_DATA / "pasted"
WANTED = {
    "journal-lowercase-month": ("null-dereference", "lantern_probe", "lantern"),
    "journal-foreign-month-de": ("null-dereference", "lantern_probe", "lantern"),
    "journal-no-hostname": ("null-dereference", "lantern_probe", "lantern"),
    "kernel-colon-only": ("null-dereference", "lantern_probe", "lantern"),
    "dmesg-T-localised": ("null-dereference", "lantern_probe", "lantern"),
    "quoted-dmesg-T": ("null-dereference", "lantern_probe", "lantern"),
    "wrapped-header": ("soft-lockup", "lantern_spin", "lantern"),
    "vendor-caller-prefix": ("null-dereference", "lantern_probe", "lantern"),
    "extra-space": ("null-dereference", "vat_copy", "cistern"),
    "indented-paste": ("null-dereference", "vat_copy", "cistern"),
}
LINES = """\
larva: loading out-of-tree module taints kernel.
BUG: kernel NULL pointer dereference, address: 0000000000000018
#PF: supervisor read access in kernel mode
#PF: error_code(0x0000) - not-present page
Oops: Oops: 0000 [#1] SMP NOPTI
CPU: 1 UID: 0 PID: 812 Comm: insmod Tainted: G           OE       6.16.2-demo #1 PREEMPT(full)
RIP: 0010:larva_probe+0x1c/0x90 [larva]
Call Trace:
 <TASK>
 larva_init+0x31/0x1000 [larva]
 do_one_initcall+0x5b/0x300
 </TASK>
---[ end trace 0000000000000000 ]---
""".splitlines()


def judged(tmp_path: Path, text: str | bytes) -> JudgedLog:
    file = tmp_path / "log"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return judge_file(str(file))


def told(crash: Crash) -> tuple[str, str | None, str | None]:
    return crash.class_, crash.function, crash.module


OOPS = [("null-dereference", "larva_probe", "larva")]


@pytest.mark.parametrize("name", WANTED)
def test_a_pasted_log_is_judged_as_the_kernel_wrote_it(name: str) -> None:
    found = judge_file(str(PASTED / f"{name}.log"))
    assert [told(crash) for crash in found.crashes] == [WANTED[name]]
    assert (found.unread, found.notes) == (None, ())


Form = Callable[[Sequence[str]], str]
"""What a program, or a person, makes of a log's lines."""


def each(prefix: str) -> Form:
    """Every line with this before it; `{s}` is a second, `{u}` six digits of one."""
    return lambda lines: "".join(
        f"{prefix.format(s=31 + (n > 3), u=f'{n:06}')}{line}\n" for n, line in enumerate(lines)
    )


def journal_json(lines: Sequence[str]) -> str:
    about = {"_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "SYSLOG_FACILITY": "0", "PRIORITY": "4"}
    return "".join(
        json.dumps({"__CURSOR": f"s=a;i={n}", **about, "MESSAGE": line}) + "\n" for n, line in enumerate(lines)
    )


def journal_pretty(lines: Sequence[str]) -> str:
    return "".join(
        json.dumps({"MESSAGE": line, "_TRANSPORT": "kernel"}, indent="\t").replace('":', '" :') + "\n" for line in lines
    )


def journal_export(lines: Sequence[str]) -> str:
    return "".join(
        f"__CURSOR=s=a;i={n}\n_TRANSPORT=kernel\nPRIORITY=4\nMESSAGE={line}\n\n" for n, line in enumerate(lines)
    )


def journal_verbose(lines: Sequence[str]) -> str:
    head = "Fri 2025-03-07 08:15:31.{n:06} CET [s=a1;i={n:x};b=c3;m=d4;t=e5;x=f6]\n"
    return "".join(
        f"{head.format(n=n)}    PRIORITY=4\n    MESSAGE={line}\n    _TRANSPORT=kernel\n" for n, line in enumerate(lines)
    )


def dmesg_json(lines: Sequence[str]) -> str:
    return json.dumps({"dmesg": [{"pri": 4, "time": 1.5, "msg": line} for line in lines]}, indent=3).replace(
        "},\n      {", "},{"
    )


def logcat(lines: Sequence[str]) -> str:
    told = []
    for line in lines:
        tag, colon, text = line.partition(":")
        tag, text = (tag, text.lstrip()) if colon and not line.startswith(" ") else ("", line)
        told.append(f"03-07 08:15:31.123     0     0 E {tag:8}: {text}\n")
    return "".join(told)


FORMS: dict[str, Form] = {
    "journal short": each("Mar 07 08:15:{s} host kernel: "),
    "journal short-precise": each("Mar 07 08:15:{s}.{u} host kernel: "),
    "journal short-iso": each("2025-03-07T08:15:{s}+0100 host kernel: "),
    "journal short-iso-precise": each("2025-03-07T08:15:{s}.{u}+01:00 host kernel: "),
    "journal short-full": each("Fri 2025-03-07 08:15:{s} CET host kernel: "),
    "journal short-full without host": each("ven. 2025-03-07 08:15:{s} CET kernel: "),
    "journal short-unix": each("17413317{s}.{u} host kernel: "),
    "journal short-monotonic": each("[   12.{u}] host kernel: "),
    "journal short-delta": each("[   12.{u} <    0.000012 >] host kernel: "),
    "journal in Japanese": each("3月 07 08:15:{s} host kernel: "),
    "journal in Russian": each("мар 07 08:15:{s} host kernel: "),
    "journal in Estonian, day first": each("7. märts 08:15:{s} host kernel: "),
    "journal json": journal_json,
    "journal json-sse": lambda lines: "".join(f"data: {line}\n\n" for line in journal_json(lines).splitlines()),
    "journal json-seq": lambda lines: "".join(f"\x1e{line}\n" for line in journal_json(lines).splitlines()),
    "journal json-pretty": journal_pretty,
    "journal export": journal_export,
    "journal verbose": journal_verbose,
    "dmesg -T": each("[Fri Mar  7 08:15:{s} 2025] "),
    "dmesg -T in Chinese": each("[五 3月  7 08:15:{s} 2025] "),
    "dmesg -H": lambda lines: each("[  +0.{u}] ")(lines).replace("[  +0.000000]", "[Mar 7 08:15]", 1),
    "dmesg -H with a decimal comma": each("[  +0,{u}] "),
    "dmesg -d": each("[   12.{u} <    0.000012>] "),
    "dmesg -x": each("kern  :warn  : [   12.{u}] "),
    "dmesg -xT": each("kern  :warn  : [Fri Mar  7 08:15:{s} 2025] "),
    "dmesg -r": each("<4>[   12.{u}] "),
    "dmesg --time-format iso": each("2025-03-07T08:15:{s},{u}+01:00 "),
    "dmesg --json": dmesg_json,
    "kern.log": each("Mar  7 08:15:{s} host kernel: [   12.{u}] "),
    "RFC 5424": each("<4>1 2025-03-07T08:15:{s}.{u}+01:00 host kernel - - - "),
    "RFC 5424 with the kernel's time": each('<4>1 2025-03-07T08:15:{s}.{u}Z host kernel - - [a@1 b="c"] [   12.{u}] '),
    "RFC 3164": each("<4>Mar  7 08:15:{s} host kernel: "),
    "OpenWrt's logread": each("Fri Mar  7 08:15:{s} 2025 kern.alert kernel: [   12.{u}] "),
    "time of day": each("08:15:{s} kernel: "),
    "time of day of twelve hours": each("8:15:{s} AM kernel: "),
    "time of day and no word": each("08:15:{s} "),
    "a terminal's time of day": each("[08:15:{s}] "),
    "a terminal's time before the kernel's": each("[2025-03-07 08:15:{s}.123] [   12.{u}] "),
    "a collector's time": each("2025-03-07T08:15:{s}.{u}Z [   12.{u}] "),
    "a collector's table": each("|   | 2025-03-07 08:15:{s} | [   12.{u}] "),
    "LAVA": each("08:15:{s}.{u}  <4>[   12.{u}] "),
    "Talos": each("10.1.10.21: kern: warning: [2025-03-07T08:15:{s}.{u}Z]: "),
    "Talos without node": each(" kern:     err: [2025-03-07T08:15:{s}.{u}Z]: "),
    "logcat": logcat,
    "Samsung": each("[   12.{u}] [2: insmod:  812] "),
    "MediaTek": each("<4>[   12.{u}]  (2)[812:insmod]"),
    "Unisoc": each("[   12.{u}] c2    812 "),
    "HiSilicon": each("[   12.{u}s][pid:812,cpu2,insmod]"),
    "Amlogic": each("[   12.{u}@2] "),
    "task and CPU": each("[   12.{u}][  T812@C2] "),
    "a caller without time": each("[  T812] "),
    "a vendor's of its own": each("12.{u}: <4> {{core 2}} (03-07 08:15:{s}) "),
    "another vendor's": each("@{u}/klog/E# "),
    "quoted": each("> [   12.{u}] "),
    "quoted twice": each("> > Mar 07 08:15:{s} host kernel: "),
    "quoted without times": each("> "),
    "quoted thrice without blanks": each(">>> "),
    "a code block": each("    [   12.{u}] "),
    "a code block without times": each("    "),
    "a tab": each("\t"),
    "a code block in a list": each("      Mar 07 08:15:{s} host kernel: "),
    "one more blank": each("[   12.{u}]  "),
    "one more blank after the host": each("Mar 07 08:15:{s} host kernel:  "),
    "carriage returns": lambda lines: each("[   12.{u}] ")(lines).replace("\n", "\r\r\n"),
    "a byte order mark": lambda lines: "\ufeff" + each("[   12.{u}] ")(lines),
    "HTML": lambda lines: "<pre>" + html.escape(each("[   12.{u}] ")(lines)) + "</pre>",
    "HTML with breaks": lambda lines: html.escape(each("")(lines)).replace(" ", "&nbsp;").replace("\n", "<br />\n"),
    "colours": lambda lines: re.sub(
        r"(\[ .*?\]) (.*)", "\x1b[32m\\1\x1b[0m \x1b[1m\\2\x1b[0m", each("[   12.{u}] ")(lines)
    ),
    "colours as an editor spells them": lambda lines: re.sub(
        r"(?m)^(.*)$", r"^[[32m\1^[[0m", each("[   12.{u}] ")(lines)
    ),
    "colours as rsyslog spells them": lambda lines: re.sub(r"(?m)^(.*)$", r"\1#033[0m", each("[   12.{u}] ")(lines)),
    "carriage returns as an editor spells them": lambda lines: each("[   12.{u}] ")(lines).replace("\n", "^M\n"),
    "blanks made one": lambda lines: re.sub(" +", " ", each("[   12.{u}] ")(lines)),
    "all in one line": lambda lines: each("[   12.{u}] ")(lines).replace("\n", " "),
    "all in one line, of a journal": lambda lines: each("Mar 07 08:15:{s} host kernel: ")(lines).replace("\n", " "),
    "two in each line": lambda lines: re.sub("\n(.*)\n", r"\1\n", each("[   12.{u}] ")(lines)),
    "two dates in each line": lambda lines: re.sub("\n(.*)\n", r"\1\n", each("[Fri Mar  7 08:15:{s} 2025] ")(lines)),
    "two ISO dates in each line": lambda lines: re.sub(
        "\n(.*)\n", r" \1\n", each("2025-03-07T08:15:{s},{u}+01:00 ")(lines)
    ),
    "escaped ends of lines": lambda lines: each("[   12.{u}] ")(lines).replace("\n", "\\n"),
    "HTML in one line": lambda lines: html.escape(each("")(lines)).replace("\n", "<br>"),
    "a table": lambda lines: each("| [   12.{u}] ")(lines).replace("\n", " |\n"),
    "a terminal's trailing blanks": lambda lines: each("[   12.{u}] ")(lines).replace("\n", " " * 60 + "\n"),
    "a host and no date": each("host kernel: "),
    "ChromeOS": each("2025-03-07T08:15:{s}.{u}Z ERR kernel: [   12.{u}] "),
    "prose about the kernel before": lambda lines: "This is from the kernel: see below\n\n" + each("")(lines),
    "another boot loader before": lambda lines: "U-Boot 2023.01\nStarting kernel ...\n" + each("[   12.{u}] ")(lines),
    "between other text": lambda lines: f"Hi,\nit went wrong:\n\n{each('    ')(lines)}\nAny idea?\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_one_report_is_found_in_every_form(form: str, tmp_path: Path) -> None:
    found = judged(tmp_path, FORMS[form](LINES))
    assert [told(crash) for crash in found.crashes] == OOPS
    assert not found.crashes[0].truncated and found.unread is None


@pytest.mark.parametrize(
    "form",
    ["journal short", "journal short-iso", "dmesg -T", "journal verbose", "journal export", "journal json", "dmesg -r"],
)
def test_a_log_that_runs_backwards_is_turned_and_that_is_said(form: str, tmp_path: Path) -> None:
    text = FORMS[form](LINES)
    if form == "journal verbose":
        entries = re.split(r"(?m)^(?=Fri )", text)
    elif form == "journal export":
        entries = [entry + "\n\n" for entry in text.split("\n\n")]
    else:
        entries = text.splitlines(keepends=True)
    found = judged(tmp_path, "".join(reversed(entries)))
    assert [told(crash) for crash in found.crashes] == OOPS
    assert found.notes == ("the log runs backwards, newest line first: it was read from its end",)
    assert judged(tmp_path, text).notes == ()


def test_a_log_of_two_days_or_two_boots_does_not_run_backwards() -> None:
    assert not runs_backwards(
        b"Mar 07 23:59:58 h kernel: a\nMar 07 23:59:59 h kernel: b\nMar 08 00:00:00 h kernel: c\n"
    )
    assert not runs_backwards(b"[   99.000000] a\n[   99.100000] b\n[    0.000000] Linux version 6\n[    0.100000] c\n")
    assert not runs_backwards(b"[    2.000000] a\n[    1.000000] b\n")


def test_the_end_of_a_report_before_another_one_does_not_mean_that_a_log_runs_backwards(tmp_path: Path) -> None:
    tail = ["R13: 0000000000000000 R14: 0000559a733feba0 R15: 0000559a733feb90", " </TASK>", LINES[-1]]
    first = ["------------[ cut here ]------------", "WARNING: CPU: 1 PID: 812 at a.c:3 larva_probe+0x1c/0x90 [larva]"]
    lines = [*tail, "larva: no basin", *first, "CPU: 1 PID: 812 Comm: rmmod Not tainted 6.1.0 #1", *LINES[6:9]]
    found = judged(tmp_path, "".join(f"Jun 05 01:04:57 mill kernel: {line}\n" for line in lines))
    assert [told(crash) for crash in found.crashes] == [("warning", "larva_probe", "larva")]
    assert not any("backwards" in note for note in found.notes)


def test_a_prefix_that_is_learned_counts_more_than_the_middle_of_a_report_without_it(tmp_path: Path) -> None:
    rule, race = "=" * 66, "race at unknown origin, with read to 0xffff933db8a2ae6c of 1 bytes by interrupt on cpu 0:"
    lines = [rule, "BUG: KCSAN: data-race in larva_rx+0x551/0xb10 [larva]", "", race]
    lines += [
        " larva_rx+0x551/0xb10 [larva]",
        " net_rx_action+0x329/0x900",
        "",
        f"Reported by Kernel Sanitizer on:\n{rule}",
    ]
    found = judged(tmp_path, "".join(f"[   44.381409][    C4]  {line}\n" for line in lines))
    assert [told(crash) for crash in found.crashes] == [("kcsan", "larva_rx", "larva")]


def test_a_first_line_in_brackets_was_read(tmp_path: Path) -> None:
    lines = ["[ INFO: suspicious RCU usage. ]", "larva.c:9 suspicious rcu_dereference_check() usage!"]
    found = judged(tmp_path, "".join(f"[   44.381409] {line}\n" for line in lines))
    assert [crash.class_ for crash in found.crashes] == ["rcu-usage"]
    assert found.unread is None


def texts(lines: list[str]) -> list[str]:
    rejoiner, reader = Rejoiner(), ConsoleReader(pasted=True)
    records = [*reader.feed("\n".join(lines).encode()), *reader.close()]
    return [record.text for record in (*rejoiner.feed(records), *rejoiner.close())]


@pytest.mark.parametrize(
    "lines",
    [
        ["[  1.000000] watchdog: BUG: soft lockup - CPU#2", "stuck for 26s! [larva:9]"],
        ["[  1.000000] BUG: KASAN: slab-out-of-bounds in", "larva_fill+0x1/0x2 [larva]"],
        ["> [  1.000000]  very_long_function+0x1/0x2", "> [larva]"],
        ["[  1.000000] CPU: 2 PID: 9 Comm: larva Tainted: G  O", "6.1.0-demo #1"],
        ["[  1.000000] Modules linked in: a(O) b", "c d"],
        ["[<ffffffffc0001234>] ? very_long_function+0x1/0x2", "[larva]"],
        ["[  1.000000] INFO: task my", "[  1.000000] task:9 blocked for more than 120 seconds."],
        ["<0>[  1.000000] INFO: task my", "<0>[  1.000000] task:9 blocked for more than 120 seconds."],
    ],
)
def test_what_belongs_together_is_joined(lines: list[str]) -> None:
    whole = " ".join(text.lstrip("> ") for text in lines).replace("task my <0>", "task my ")
    assert texts(lines) == [re.sub(r"(?:<0>)?\[  1\.000000\] ", "", whole)]


def test_a_first_line_that_a_terminal_broke_within_a_word_is_joined() -> None:
    assert texts(["[  1.000000] watchdog: BUG: soft lockup - CPU#2 st", "uck for 26s! [larva:9]"]) == [
        "watchdog: BUG: soft lockup - CPU#2 stuck for 26s! [larva:9]"
    ]


def test_a_register_s_place_on_the_next_line_is_joined_as_the_kernel_prints_it() -> None:
    assert texts(["[  1.000000] RIP: 0010:", "larva_fill+0x1/0x2 [larva]"]) == ["RIP: 0010:larva_fill+0x1/0x2 [larva]"]


@pytest.mark.parametrize(
    "lines",
    [
        ["[  1.000000] BUG: kernel NULL pointer dereference, address: 0", "login: "],
        ["[  1.000000] Kernel panic - not syncing: x", "hello"],
        ["[  1.000000] WARNING: something of a driver's", "[  1.000000] BUG: unable to handle page fault for address"],
        ["[  1.000000]  f+0x1/0x2", "[  1.000000] [larva]"],
    ],
)
def test_what_does_not_belong_together_is_not(lines: list[str]) -> None:
    assert len(texts(lines)) == 2


def broken(line: str, width: int) -> list[str]:
    """A line as a mailer breaks it."""
    lines = []
    while len(line) > width and (at := line.rfind(" ", 20, width)) >= 20:
        lines.append(line[:at])
        line = line[at + 1 :]
    return [*lines, line]


@pytest.mark.parametrize("width", [66, 72, 76])
@pytest.mark.parametrize("quote", ["", "> "])
@pytest.mark.parametrize("form", ["journal short", "journal short-iso", "kern.log", "dmesg -T", "RFC 5424"])
def test_a_log_that_a_mailer_wrapped_is_read_as_it_was(form: str, quote: str, width: int, tmp_path: Path) -> None:
    lines = [part for line in FORMS[form](LINES).splitlines() for part in broken(line, width)]
    found = judged(tmp_path, "".join(f"{quote}{line}\n" for line in lines))
    assert [told(crash) for crash in found.crashes] == OOPS and found.unread is None


def test_what_a_program_says_between_the_kernel_s_lines_is_not_taken_for_a_wrapped_rest() -> None:
    noise = b"[    1.000000] a line of the kernel\nlogin: \n[    2.000000] another\n[  OK  ] Started getty.\n" * 9
    assert not is_wrapped(noise)


SAMPLES = [log for log in CORPUS if log.stem not in NEEDS_PREFIXES and not log.stem.startswith("benign-boot")][::23]
ONE_LINE = {"a vendor's of its own", "another vendor's", "two in each line", "two dates in each line"}
"""Forms in which a report of a single line cannot be told, or a record without text ends another."""


@pytest.mark.parametrize("log", SAMPLES, ids=lambda log: log.stem)
def test_every_kind_of_report_is_found_in_every_form(log: Path) -> None:
    words = words_of(log)
    wanted = [crash.title for crash in hear(io.BytesIO(words.encode())).crashes]
    for form in FORMS.keys() - ONE_LINE:
        text = FORMS[form](words.splitlines())
        assert [crash.title for crash in hear(io.BytesIO(text.encode())).crashes] == wanted, form


def test_a_report_that_could_not_be_read_is_not_nothing(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        "[    1.000000] larva: loading out-of-tree module taints kernel.\n"
        "xy BUG: kernel NULL pointer dereference, address: 0\n",
    )
    assert found.crashes == ()
    assert found.unread is not None
    assert (found.unread.lines, found.unread.first) == (1, "xy BUG: kernel NULL pointer dereference, address: 0")
    (note,) = found.notes
    assert note.startswith("1 line looks like a kernel's and could not be read, the first: xy BUG: ")


def test_a_report_without_prefix_in_a_log_with_prefixes_is_read(tmp_path: Path) -> None:
    found = judged(tmp_path, "[    1.000000] hello\n" + "\n".join(LINES))
    assert [told(crash) for crash in found.crashes] == OOPS


def test_what_a_program_says_of_a_kernel_is_nobody_s_report(tmp_path: Path) -> None:
    said = "".join(f"<12>[   12.{n:06}] app: {line}\n" for n, line in enumerate(LINES))
    assert judged(tmp_path, said) == JudgedLog((), (), None, None)


def test_a_program_s_line_in_a_journal_is_no_kernel_s() -> None:
    for line in ("Mar 07 08:15:31 host sshd[1]: kernel: BUG: x", "Mär 07 08:15:31 host app: BUG: x"):
        assert not any(
            record.from_kernel for record in parse_log(f"Mar 07 08:15:31 host kernel: a\n{line}".encode()).records[1:]
        )


def test_a_message_of_bytes_in_the_journal_s_json_is_read() -> None:
    line = json.dumps({"_TRANSPORT": "kernel", "MESSAGE": list(b"caf\xc3\xa9 \xff")})
    assert parse_log(line.encode()).records == (Record(None, None, "caf\u00e9 \\xff", None, 0),)


def test_a_message_of_several_lines_in_the_export_format_is_read() -> None:
    data = (
        b"__CURSOR=s=a\n_TRANSPORT=kernel\nMESSAGE\n\x07\x00\x00\x00\x00\x00\x00\x00one\ntwo\n\n"
        b"__CURSOR=s=b\nMESSAGE=three\n_TRANSPORT=kernel\n"
    )
    assert [record.text for record in parse_log(data).records] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "nasty",
    [
        *(
            "{" * 9000,
            '{"MESSAGE":' * 3000,
            "> " * 30000,
            "a " * 30000,
            "[1:1" * 9000,
            "1:1:1 " * 9000,
            " kernel: " * 9000,
        ),
        *(
            "08:15:31 kernel: " * 5000,
            "[    1.000000] x" * 5000,
            "&lt;" * 9000,
            "<br " * 9000,
            "CPU: 0 PID: 1 Comm: " * 3000,
        ),
        *("__CURSOR=" * 3000, "Mar 07 08:15:31 host kernel: x " * 3000, "BUG: " * 9000, "- 1 - " * 9000),
    ],
)
def test_hostile_lines_of_a_paste_cost_no_more_than_others(nasty: str, tmp_path: Path) -> None:
    began = time.process_time()
    (tmp_path / "log").write_text(f"{nasty}\n> {nasty}\n[    1.000000] {nasty}\n" * 3 + "[    1.000000] Call Trace:\n")
    judge_file(str(tmp_path / "log"))
    assert time.process_time() - began < 3
