"""Texts of lab.yaml, and labs read from them."""

from __future__ import annotations

from pathlib import Path

from kmlab.config.lab import GuestSpec, Lab, load_lab

INTERFACE = """\
name: my-lab
default: debian
guests:
  debian: {image: debian-12, kernel: default, cpus: 2, memory: 1G}
  noble:  {image: ubuntu-24.04, kernel: default, secure_boot: true}
modules:                                # optional: any directory with a Kbuild file or a Makefile runs without an entry
  params: {source: examples/params, params: {my_str: larva}, exercise: ./check.sh, expect: {outcome: pass, log: ["larva"]}}
libvirt: embedded                       # or any libvirt URI: qemu:///session, qemu:///system
accel: auto                             # auto, kvm, tcg
"""  # noqa: E501 - the interface's own example, to the letter

SHORT = "name: a\nguests:\n  debian: {image: debian-12}\n"
DIGEST = "0123456789abcdef" * 4


def lab_of(folder: Path, text: str | bytes) -> Lab:
    path = folder / "lab.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_lab(path)


def guest(folder: Path, line: str) -> GuestSpec:
    return lab_of(folder, f"name: a\nguests:\n  g:\n    image: x\n    {line}\n").guests["g"]
