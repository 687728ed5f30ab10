"""Test the order in which a kernel's watchdogs report a hang."""

from __future__ import annotations

from itertools import product

import pytest

from kmlab.kernel.hang.watchdogs import ladder


@pytest.mark.parametrize(("accel", "nested"), list(product(("kvm", "tcg"), (False, True))))
def test_each_watchdog_is_later_than_the_one_before(accel: str, nested: bool) -> None:
    rungs = list(ladder(accel, nested=nested))
    assert rungs == sorted(set(rungs))


def test_nested_virtualisation_has_the_time_of_an_emulated_guest() -> None:
    """Soft lockups of 22 s are seen in such guests, though nothing hangs."""
    assert ladder("kvm", nested=True) == ladder("tcg") != ladder("kvm")
    assert ladder("kvm", nested=True).soft_lockup > ladder("kvm").soft_lockup
