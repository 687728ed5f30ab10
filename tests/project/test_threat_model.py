"""The threat model names tests that exist, and the campaign draws the same steps each time."""

from __future__ import annotations

import re

import pytest

from tests.places import REPOSITORY
from tools.campaign import COMMANDS, SIGNALS, VICTIMS, Blow

PAGE = REPOSITORY / "docs" / "threat-model.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8"))))


def test_each_row_of_the_threat_model_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if "`tests/" not in row.rsplit(" | ", 1)[1]] == []


@pytest.mark.parametrize("name", NAMED)
def test_the_test_is_there(name: str) -> None:
    assert "def test_" in (REPOSITORY / name).read_text(encoding="utf-8")


def test_a_campaign_of_a_seed_is_always_the_same_and_hits_everything() -> None:
    blows = [Blow.of(7, step) for step in range(200)]
    assert blows == [Blow.of(7, step) for step in range(200)]
    assert blows != [Blow.of(8, step) for step in range(200)]
    assert {blow.command for blow in blows} == set(COMMANDS)
    assert {blow.victim for blow in blows} == set(VICTIMS)
    assert {blow.number for blow in blows} == set(map(int, SIGNALS))
