"""The judge's tables: kinds of reports, stack formats, functions to pass over, and what other files take from them."""

from __future__ import annotations

import ast
import time
from collections import Counter
from pathlib import Path

import pytest

from kmlab.kernel.crash import dedup, parser, patterns, skipped_functions, stack_formats
from kmlab.kernel.crash.parser.scanner import Scanner
from kmlab.kernel.crash.stack_trace import Frame, blame, find_symbol, parse_frames, plain_name
from kmlab.kernel.log.records import parse_log
from tests.kernel.crash.test_oops import CORPUS, read_sample

DATA = CORPUS[0].parent
PARSER = sorted(Path(str(parser.__file__)).parent.glob("*.py"))
TRAITS = patterns.CLASS_TRAITS.keys() | patterns.LINE_TRAITS.keys()
HELPERS = (
    "dump_backtrace __kmalloc_noprof ___kmalloc_large_node __x86_indirect_thunk_rax _raw_spin_lock_irqsave "
    "mutex_lock_nested check_prev_add kasan_report __sanitizer_cov_trace_pc skb_put rb_erase xas_load kobject_add "
    "sysfs_warn_dup strnstr wait_for_completion_timeout core::panicking::panic_fmt"
)
NO_HELPERS = (
    "delete_item delay_line_set show_gate report_level print_receipt die_roll warn_user lock_gate wait_room_enter "
    "memory_map_build panic_button_press string_quartet_play"
)


def test_every_trait_of_a_row_is_explained() -> None:
    used = set().union(*(row.traits for row in patterns.SHAPES), *(row.traits for row in patterns.MESSAGES))
    assert used == TRAITS
    assert not patterns.CLASS_TRAITS.keys() & patterns.LINE_TRAITS.keys()


def test_every_line_that_a_row_matches_has_a_word_to_look_for() -> None:
    for path in CORPUS:
        for record in parse_log(read_sample(path).data).records:
            rows: list[patterns.Shape | patterns._Row] = [*patterns.SHAPES, *patterns.MESSAGES]
            matching = [row for row in rows if row.pattern.match(record.text)]
            assert all(any(needle in record.text for needle in row.needles) for row in matching), record.text
            assert not (matching and patterns.is_plain(record.text)), record.text


@pytest.mark.parametrize("path", [Path(dedup.__file__), *PARSER], ids=lambda path: path.stem)
def test_every_class_that_is_named_in_the_code_is_in_the_table(path: Path) -> None:
    tree = ast.parse(path.read_text())
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and "class_" in ast.unparse(node)]
    words = {
        constant.value
        for node in compared
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert words <= patterns.kinds_and_classes() | TRAITS
    asked = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith((".is_", "._is"))
        and isinstance(call.args[0], ast.Constant)
    }
    assert asked <= TRAITS


def test_a_function_is_passed_over_for_one_reason() -> None:
    names = Counter(name.lstrip("_") for group in skipped_functions.GROUPS for name in group.names.split())
    assert [name for name, count in names.items() if count > 1] == []
    assert all(group.reason for group in skipped_functions.GROUPS)


@pytest.mark.parametrize("name", HELPERS.split())
def test_a_helper_is_passed_over(name: str) -> None:
    assert skipped_functions.reason_to_skip(name)


@pytest.mark.parametrize("name", NO_HELPERS.split())
def test_a_function_that_only_sounds_like_a_helper_is_not_passed_over(name: str) -> None:
    assert skipped_functions.reason_to_skip(name) is None


def test_another_module_s_helper_is_passed_over_in_that_module_alone() -> None:
    assert skipped_functions.reason_to_skip("__cv_wait", "spl")
    assert skipped_functions.reason_to_skip("__cv_wait", "gate") is None
    assert skipped_functions.reason_to_skip("kfree", "gate") is None


@pytest.mark.parametrize(
    ("line", "names", "exact"),
    [
        ("RIP: 0010:f+0x1/0x20 [m]", ["f"], True),
        ("RIP: e030:f+0x1/0x20 [m]", ["f"], True),
        ("RIP: 0010:[<ffffffffa0001001>]  [<ffffffffa0001001>] f+0x1/0x20 [m]", ["f"], True),
        ("RIP: 0010:[<0000000000000000>]  [<          (null)>]           (null)", ["0x0"], True),
        ("IP: [<f8a4102c>] f+0x2c/0x90 [m]", ["f"], True),
        ("EIP is at f+0x2c/0x90 [m]", ["f"], True),
        ("EIP: f+0x2c/0x90 [m]", ["f"], True),
        ("pc : f+0x10/0x60 [m]", ["f"], True),
        ("PC is at f+0x24/0x88 [m]", ["f"], True),
        ("epc : f+0x1c/0x60 [m]", ["f"], True),
        ("epc   : 86a40abc f+0x2c/0x70 [m]", ["f"], True),
        ("  ERA: ffff800002016040 f+0x10/0x60 [m]", ["f"], True),
        ("NIP [c008000000f2015c] f+0x1c/0x60 [m]", ["f"], True),
        ("Krnl PSW : 0704c00180000000 000003ff80125a2e (f+0x26/0x80 [m])", ["f"], True),
        ("Krnl PSW : 0704c00180000000 000003ff80125a2e ([<000003ff80125a2e>] f+0x26/0x80 [m])", ["f"], True),
        ("    pc: c008000000f2015c: f+0x1c/0x60 [m]", ["f"], True),
        ("    lr: c008000000f20188: f+0x28/0x1000 [m]", [], False),
        (" f+0x1/0x20 [m]", ["f"], False),
        (" f+0x10/0x60 [m] (P)", ["f"], False),
        (" [<ffffffffa0001001>] f+0x1/0x20 [m]", ["f"], False),
        ("[c0000000059df990] [c008000000f20180] f+0x20/0x1000 [m]", ["f"], False),
        ("([<000003ff80125a2e>] f+0x26/0x80 [m])", ["f"], False),
        ("[<bf001288>] (f [m]) from [<bf006030>] (g+0x30/0x1000 [m])", ["f", "g"], False),
        (" f [m] from g+0x30/0x1000 [m]", ["f", "g"], False),
        (" f+0x1/0x20 [m] /src/m.c:3", ["f"], False),
        (" f /src/m.c:3 [inline]", ["f"], False),
        (" f (/src/m.c:3 (discriminator 2)) m", ["f"], False),
        ("lr : f+0x10/0x60 [m]", [], False),
        ("LR is at f+0x24/0x88 [m]", [], False),
        (" ra : f+0x2a/0x1000 [m]", [], False),
        ("LR [c008000000f20188] f+0x28/0x1000 [m]", [], False),
        ("RIP: 0033:0x7f53dd92e829", [], False),
        ("EIP: [<f8a4102c>] f+0x2c/0x90 [m] SS:ESP 0068:f0a21e9c", [], False),
        ("m: f (see m.c)", [], False),
        (" f ([a:1)", [], False),
    ],
)
def test_each_architecture_s_frames_are_read(line: str, names: list[str], exact: bool) -> None:
    frames = parse_frames(line)
    assert [frame.name for frame in frames] == names
    assert [frame.exact for frame in frames] == [exact] * len(names)


def test_a_log_that_was_symbolised_has_its_places() -> None:
    (frame,) = parse_frames(" f (include/linux/list.h:9 /src/m.c:3 /src/m.c:8) m")
    assert frame[-4:] == ("/src/m.c", 3, False, True), "the innermost place that is no header's"
    (header,) = parse_frames(" list_del include/linux/list.h:9 [inline]")
    assert not header.own
    symbol = find_symbol("BUG: KASAN: use-after-free in f /src/m.c:3 [inline]")
    assert symbol and (symbol.name, symbol.file, symbol.line) == ("f", "/src/m.c", 3)


def test_the_rows_of_stack_formats_cost_no_more_than_others() -> None:
    began = time.process_time()
    for start in ("", "RIP: 0010:", "NIP [c008000000f2015c] ", " f from ", "[<", "(", "Krnl PSW : ", " f (a:1"):
        for rest in ("a", " ", "[<0", "(", "a:1 ", "(discriminator 1)", "+0x1/0x2", " from "):
            for _ in range(20):
                parse_frames(start + rest * (8000 // len(rest)))
    assert time.process_time() - began < 2
    assert len({row.architecture for row in stack_formats.FORMATS}) == len(stack_formats.FORMATS)


def frame(name: str, module: str | None = None, reliable: bool = True) -> Frame:
    return Frame(name, 1, 2, module, reliable, exact=False)


def test_a_caller_from_outside_of_the_tree_is_blamed_before_the_module_that_complains() -> None:
    frames = [frame("complain", "intree"), frame("cause", "mine")]
    none: frozenset[str] = frozenset()
    assert blame(frames, (), none) == frames[0]
    assert blame(frames, (), none, suspects=frozenset({"mine"})) == frames[1]
    assert blame(frames, (), frozenset({"intree"}), suspects=frozenset({"mine"})) == frames[0]


def test_a_trace_that_shows_only_how_it_was_printed_blames_nobody() -> None:
    frames = [frame("show_stack"), frame("dump_stack_lvl"), frame("asm_exc_page_fault")]
    assert blame(frames, (), frozenset()) is None
    assert blame(frames, (), frozenset(), named=[frame("cause")]) == frame("cause")


def test_what_a_stalled_cpu_was_at_comes_behind_the_interrupt() -> None:
    frames = [frame("rcu_dump"), frame("gic_handle_irq"), frame("el1h_64_irq"), frame("loop"), frame("kthread")]
    found = blame(frames, (), frozenset(), hang=True)
    assert found and found.name == "loop"


def test_a_kernel_that_is_known_to_live_has_not_panicked() -> None:
    records = parse_log(b"<0>[    1.000000] Kernel panic - not syncing: says a module\n").records
    for alive, found in ((False, ["panic"]), (True, [])):
        scanner = Scanner()
        scanner.feed(records)
        scanner.close(alive)
        assert [crash.class_ for crash in scanner.crashes] == found


def test_a_program_that_speaks_after_a_panic_shows_that_there_was_none() -> None:
    scanner = Scanner()
    scanner.feed(parse_log(b"<0>[    1.000000] Kernel panic - not syncing: says a module\n").records)
    assert not scanner.panicked, "a panic says more than that"
    scanner.feed(parse_log(b"".join(b"<13>[    1.0%d] still here\n" % n for n in range(10, 14))).records)
    assert not scanner.panicked
    scanner.close()
    assert scanner.crashes == []


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_RNvMNtCs5vQ8mZt1aB_4rvat4tankNtB2_4Tank4fill", "<rvat::tank::Tank>::fill"),
        (
            "_RNvXs1_Cs1_5rgateNtB5_4GateNtNtCs2_6kernel4file10Operations4open",
            "<rgate::Gate as kernel::file::Operations>::open",
        ),
        ("_RNCNvCs1_4rvat4main0B3_", "rvat::main::{closure}"),
        ("_RINvCs1_4rvat3getRShE", "rvat::get::<&[u8]>"),
        ("_RINvCs1_4rvat3getAhj8_TlxEE", "rvat::get::<[u8; 8], (i32, i64)>"),
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("_RNvCs1_4rvatu8gdel_5qa", "rvat::gödel"),
        ("_ZN4core9panicking9panic_fmt17h1234567890abcdefE", "core::panicking::panic_fmt"),
        (
            "_ZN46_$LT$rvat..Tank$u20$as$u20$core..ops..Drop$GT$4drop17h0123456789abcdefE",
            "<rvat::Tank as core::ops::Drop>::drop",
        ),
        ("__pfx__RNvC4rvat4fill", "rvat::fill"),
        ("__cfi_gate_open", "gate_open"),
        ("gate_open.constprop.0", "gate_open"),
        ("_RECLAIMABLE", "_RECLAIMABLE"),
        ("_RNv", "_RNv"),
        ("_RB_B_B_", "_RB_B_B_"),
        ("_RNvC" + "9" * 50, "_RNvC" + "9" * 50),
        ("_R" + "I" * 3000, "_R" + "I" * 3000),
        ("_ZN9999x17h0123456789abcdefE", "_ZN9999x17h0123456789abcdefE"),
    ],
)
def test_a_function_is_named_as_its_author_wrote_it(mangled: str, name: str) -> None:
    assert plain_name(mangled) == name


def test_a_frame_is_shown_as_printed_unless_that_is_rust_s() -> None:
    assert frame("f.constprop.0").shown == "f.constprop.0"
    assert frame("_RNvC4rvat4fill").shown == "rvat::fill"


def test_an_access_that_kfence_found_is_an_exact_place_and_a_sanitizer_s_word_is_a_call() -> None:
    log = b"[    1.000000] BUG: KFENCE: use-after-free read in gate_use+0x5/0x40 [gate]\n"
    log += b"[    1.000001]  gate_use+0x5/0x40 [gate]\n"
    for kind, exact in ((b"use-after-free read", True), (b"memory corruption", False), (b"invalid free", False)):
        scanner = Scanner()
        scanner.feed(parse_log(log.replace(b"use-after-free read", kind)).records)
        scanner.close()
        assert scanner.crashes[0].frames[0].exact is exact
    scanner = Scanner()
    scanner.feed(parse_log(b"[    1.000000] BUG: KASAN: use-after-free in gate_use+0x5/0x40 [gate]\n").records)
    scanner.close()
    (crash,) = scanner.crashes
    assert (crash.function, crash.frames[0].exact, crash.truncated) == ("gate_use", False, True)


def test_rcu_s_own_thread_is_not_the_stack_of_a_stall() -> None:
    (path,) = (path for path in CORPUS if path.stem == "rcu-kthread-victim")
    data = read_sample(path).data.replace(b" [sluice]", b"")
    scanner = Scanner()
    scanner.feed(parse_log(data).records)
    scanner.close()
    assert [crash.function for crash in scanner.crashes] == ["gate_spin"]


def test_a_first_line_alone_is_a_finding_unless_the_log_is_whole_and_goes_on() -> None:
    quoted = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        *(f"gate: level {n} of water" for n in range(6)),
    ]
    for prefix, found in (("[    1.000000] ", ["null-dereference"]), ("<3>[    1.000000] ", [])):
        scanner = Scanner()
        scanner.feed(parse_log("".join(f"{prefix}{line}\n" for line in quoted).encode()).records)
        scanner.close()
        assert [crash.class_ for crash in scanner.crashes] == found


MIDDLE = b"""[   61.220080] RIP: 0010:gate_open+0x18/0x2d [gate]
[   61.220081] Call Trace:
[   61.220082]  gate_ioctl+0x2a/0x50 [gate]
"""


def test_the_middle_of_a_report_is_a_finding_where_a_log_has_nothing_else() -> None:
    for before, found in ((b"", ["stack-dump"]), (b"[   61.000000] sysrq: Show State\n", [])):
        scanner = Scanner()
        scanner.feed(parse_log(before + MIDDLE).records)
        scanner.close()
        assert [crash.class_ for crash in scanner.crashes] == found
    whole = (DATA / "null-deref-read-6.12.txt").read_bytes()
    scanner = Scanner()
    scanner.feed(parse_log(MIDDLE + whole).records)
    scanner.close()
    assert [crash.class_ for crash in scanner.crashes] == ["null-dereference"]
