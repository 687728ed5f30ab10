"""kmlab.kernel.taint: the kernel's flags by name."""

from __future__ import annotations

import pytest

from kmlab.kernel.log.taint import FLAGS, find_taint, parse_taint_letters, taint_mask, taint_meaning, taint_names


def test_an_out_of_tree_module_gives_4096() -> None:
    assert taint_names(4096) == ["OOT_MODULE"]


def test_an_unsigned_out_of_tree_module_gives_12288() -> None:
    assert taint_names(12288) == ["OOT_MODULE", "UNSIGNED_MODULE"]


def test_a_clean_kernel_has_no_flags() -> None:
    assert taint_names(0) == []


def test_bits_are_counted_without_a_gap_and_letters_are_unique() -> None:
    assert [flag.bit for flag in FLAGS] == list(range(20))
    assert len({flag.letter for flag in FLAGS}) == len(FLAGS)


def test_a_bit_of_a_newer_kernel_keeps_its_number() -> None:
    assert taint_names(1 << 33 | 1 << 9) == ["WARN", "BIT_33"]


def test_names_and_mask_are_each_other_s_inverse() -> None:
    for mask in (0, 1, 512, 12288, (1 << 20) - 1, 1 << 40):
        assert taint_mask(taint_names(mask)) == mask


def test_an_unknown_name_has_no_mask() -> None:
    with pytest.raises(KeyError):
        taint_mask(["NOTHING"])


def test_letters_of_sysfs_are_read() -> None:
    assert parse_taint_letters("OE\n") == ["OOT_MODULE", "UNSIGNED_MODULE"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            "CPU: 1 PID: 9 Comm: sh Tainted: G      D    OE      6.1.0-56-cloud-amd64 #1",
            ["DIE", "OOT", "UNS"],
        ),
        ("CPU: 1 UID: 0 PID: 9 Comm: cat Not tainted 6.12.95 #1", []),
        ("Tainted: [O]=OOT_MODULE, [E]=UNSIGNED_MODULE", ["OOT", "UNS"]),
        ("CPU: 0 PID: 1 Comm: x Tainted: P           O       6.12.95-amd64 #1", ["PRO", "OOT"]),
        ("hello, world", None),
    ],
)
def test_the_taint_of_a_report_is_found_in_both_shapes(line: str, names: list[str] | None) -> None:
    found = find_taint(line)
    assert (found and [name[:3] for name in found]) == (names and [name[:3] for name in names])


def test_every_flag_has_a_meaning() -> None:
    assert all(taint_meaning(flag.name) for flag in FLAGS)
    assert taint_meaning("BIT_33") == ""
