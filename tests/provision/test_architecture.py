"""Test that a guest's architecture comes from lab.yaml or the catalogue, and only then from the host."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import kmlab
from kmlab.common.errors import ConfigError
from kmlab.common.events import silent
from kmlab.config.lab import load_lab
from kmlab.provision import lifecycle
from kmlab.provision.plan.plan import guest_image_source
from kmlab.testing import World

HOST = os.uname().machine
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[HOST]
ENTRY = Path(kmlab.__file__).parents[1] / "images" / "debian-12.yaml"


def arch(folder: Path, image: str) -> str:
    """The architecture of a lab's only guest."""
    (folder / "lab.yaml").write_text(f"name: a\nguests:\n  one: {{image: {image}}}\n")
    lab = load_lab(folder / "lab.yaml")
    return guest_image_source(lab, lab.guest("one"))[1].arch


def test_the_default_of_several_architectures_is_the_host_s(tmp_path: Path) -> None:
    assert arch(tmp_path, "debian-12") == arch(tmp_path, "{name: debian-12}") == HOST


def test_arch_in_lab_yaml_takes_precedence(tmp_path: Path) -> None:
    assert arch(tmp_path, f"{{name: debian-12, arch: {OTHER}}}") == OTHER
    assert arch(tmp_path, f"{{name: ubuntu-24.04, arch: {OTHER}}}") == OTHER
    assert arch(tmp_path, f"{{path: x.qcow2, family: debian, arch: {OTHER}}}") == OTHER


def test_an_image_for_one_architecture_uses_it_on_every_host(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = ENTRY.read_text()
    head, body = text.split("architectures:\n")
    parts = [part for part in body.split("  x86_64:\n")[1].split("  aarch64:\n")]
    (tmp_path / "images" / "only.yaml").write_text(f"{head}architectures:\n  {OTHER}:\n{parts[OTHER == 'aarch64']}")
    assert arch(tmp_path, "only") == OTHER
    with pytest.raises(ConfigError, match=rf"lab\.yaml:3: image 'only' is not available for {HOST}"):
        arch(tmp_path, f"{{name: only, arch: {HOST}}}")


def test_an_unknown_architecture_is_reported_with_the_available_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lab\.yaml:3: 'arch' .*x86_64.*aarch64"):
        arch(tmp_path, "{name: debian-12, arch: arm}")


def test_an_image_is_built_for_the_requested_architecture(xdg: Path) -> None:
    with World() as world:
        path = lifecycle.build_image(world.host, "debian-12", None, silent, OTHER)
        assert path.parent.name.startswith(f"debian-12-{OTHER}-")
        found, _ = lifecycle.available(world.host, "debian-12", None, silent, OTHER)
        assert found == [] and world.asked.count("build-image") == 1


def test_only_known_places_query_the_host_s_architecture() -> None:
    """Whether the host's programs can be run is the host's to say: a sandbox, and what doctor finds."""
    home = Path(kmlab.__file__).parent
    asking = set()
    for path in home.rglob("*.py"):
        names = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
        if "uname" in names:
            asking.add(str(path.relative_to(home)))
    assert asking == {
        *("provision/plan/plan.py", "provision/bases/toolchain.py"),
        *("host/hypervisor/doctor.py", "host/process/sandbox.py", "host/process/seccomp.py", "host/running_kernel.py"),
        *("provision/kernels/built_kernel.py", "run/build/make.py"),
    }
