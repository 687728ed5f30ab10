"""One cache, several state homes: nobody prunes what a guest of another home uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.events import silent
from kmlab.config.lab import Lab, load_lab
from kmlab.provision import cache, lease, lifecycle
from kmlab.testing import World


@pytest.fixture
def lab(xdg: Path) -> Lab:
    (xdg / "lab.yaml").write_text("name: t\nguests:\n  debian: {image: debian-12}\n")
    return load_lab(xdg / "lab.yaml")


def up(world: World, lab: Lab) -> None:
    with lifecycle.guest_session(world.host, lab, lab.guest("debian"), silent):
        pass


@pytest.fixture
def elsewhere(world: World, lab: Lab, xdg: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another state home on the same cache, in which nothing was ever started; a guest runs in the first one."""
    up(world, lab)
    home = xdg / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(xdg / "other"))
    return home


def test_prune_in_another_home_keeps_what_a_running_guest_uses(elsewhere: Path) -> None:
    assert cache.prune() == ([], 0)


def test_prune_takes_it_once_the_guest_is_down(
    elsewhere: Path, world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere))
    lifecycle.take_down(world.host, lab, "debian", silent)
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere.with_name("other")))
    removed, _ = cache.prune()
    assert sorted(name.split("/")[0] for name in removed) == ["bases", "checkpoints", "images"]
    assert list(paths.leases().iterdir()) == []


def test_destroying_another_home_with_all_its_state_keeps_the_cache(elsewhere: Path, world: World, lab: Lab) -> None:
    lifecycle.destroy_lab(world.host, lab, [], all_state=True, report=silent)
    assert list(paths.checkpoints().iterdir())


def test_a_lease_ends_with_the_folder_of_its_guest_and_with_the_boot(elsewhere: Path) -> None:
    (place,) = paths.leases().iterdir()
    value = paths.read_json(place)
    assert len(lease.leased()) == 2
    paths.write_json(place, {**value, "boot": "an earlier one"})
    assert lease.leased() == set()
    paths.write_json(place, {**value, "record": str(elsewhere / "gone" / "guest.json")})
    assert lease.leased() == set()
    paths.write_json(place, {**value, "machine": "another host", "boot": "its own"})
    assert len(lease.leased()) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"used": 3}', b"\xff"])
def test_a_damaged_lease_keeps_nothing(xdg: Path, content: bytes) -> None:
    paths.make_folder(paths.leases())
    (paths.leases() / "x.json").write_bytes(content)
    assert lease.leased() == set()


def test_a_guest_that_could_not_start_leaves_no_lease(world: World, lab: Lab) -> None:
    world.boot_panics = 9
    with pytest.raises(Exception, match="panicked"):
        up(world, lab)
    assert list(paths.leases().glob("*")) == []
