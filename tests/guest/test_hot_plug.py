"""Devices come and go while a driver has them, and the command prints what the kernel says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import LAB_YAML, Lab

GUEST = "name: t\nguests:\n  card: {image: debian-12, cpus: 2, memory: 1G, devices: [edu]}\n"


@pytest.fixture
def card(lab: Lab) -> Lab:
    lab.write(GUEST)
    return lab


def example(name: str) -> str:
    return str(Path(LAB_YAML).parent / "examples" / name)


def test_a_device_goes_and_comes_back_under_its_driver(card: Lab) -> None:
    card("load", example("edu"))
    assert card("device", "remove", "card", "edu", "--json").json["changed"] == "edu"
    assert card("device", "list", "card", "--json").json["devices"] == []
    back = card("device", "add", "card", "edu", "--json").json
    assert (back["changed"], back["crashes"]) == ("edu", [])
    added = card("device", "add", "card", "nvme: 64M", "--json").json
    assert [device["name"] for device in added["devices"]] == ["edu", "nvme"]
    card("device", "remove", "card", "nvme")
    log = card("log", "card").out
    assert log.count("64 bytes came back by DMA") == 2 and ": gone" in log
    card("unload", example("edu"))


def test_a_driver_that_crashes_when_its_device_goes_is_told(card: Lab) -> None:
    card("load", example("edu_late_irq"))
    (crash, *_) = card("device", "remove", "card", "edu", "--json", code=1).json["crashes"]
    assert crash["function"] == "card_interrupt"
