"""Which accelerator guests get: measured, because a /dev/kvm that opens is not KVM that works.

A tiny firmware of our own does a fixed amount of work and leaves through QEMU's isa-debug-exit port. Nested or
broken KVM opens, creates a VM, and then runs nothing; libvirt and `kvm-ok` are content with it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline, silent
from kmlab.host.process import command, locks

# Real mode to protected mode; twice: add to each dword of 16 MiB; then out 0xf4. In GNU assembler:
#   cli; lgdtl; cr0 |= 1; ljmpl $8, 1f; 1: ds = es = 16; edx = 2
#   2: edi = 0x100000; ecx = 0x400000; 3: addl %ecx, (%edi); addl $4, %edi; decl %ecx; jnz 3b; decl %edx; jnz 2b
#   outl $0x31, $0xf4; hlt      (the GDT: null, flat code, flat data; at the reset vector a jump to the start)
_CODE = bytes.fromhex(
    "fa2e660f011660ff0f20c06683c8010f22c066ea1affffff080066b810008ed88ec0ba02000000bf00001000b900004000"
    "010f83c7044975f84a75ebb83100000066baf400eff4900000000000000000ffff0000009bcf00ffff00000093cf001700"
    "48ffffff"
)
_KVM_CHECK_EXTENSION, _KVM_CAP_X86_SMM = 0xAE03, 117
"""include/uapi/linux/kvm.h; a host's kernel can be built without it (CONFIG_KVM_SMM)."""
_RESET = bytes.fromhex("e90dff")
_DONE = (0x31 << 1) | 1
"""The exit status of isa-debug-exit: the value written, shifted, with the lowest bit set."""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What guests run with, and why."""

    name: str
    """kvm or tcg."""
    why: str


def choose(wanted: str, arch: str = "") -> Acceleration:
    """`wanted` is lab.yaml's `accel`: auto, kvm or tcg. Measures once per boot of the host and QEMU build."""
    arch = arch or platform.machine()
    if wanted == "tcg":
        return Acceleration("tcg", "lab.yaml says so")
    found = _measured(arch)
    if wanted == "kvm" and found.name != "kvm":
        raise LabError(f"accel: kvm, but {found.why}", "accel: auto takes kvm where it works, tcg elsewhere")
    return found


def has_smm(accelerator: str, arch: str) -> bool:
    """Whether guests can have System Management Mode: QEMU's own emulation has it, of KVM it is asked."""
    if arch != "x86_64":
        return False
    if accelerator == "tcg":
        return True
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(device, _KVM_CHECK_EXTENSION, _KVM_CAP_X86_SMM) > 0
        finally:
            os.close(device)
    except OSError:
        return False


def last_choice(wanted: str) -> Acceleration | None:
    """What `choose` would say, if it is known without measuring."""
    if wanted == "tcg":
        return Acceleration("tcg", "lab.yaml says so")
    record = paths.read_json(paths.acceleration()) or {}
    known = record.get(_situation(platform.machine())) if isinstance(record, dict) else None
    return Acceleration(**known) if known else None


def _measured(arch: str) -> Acceleration:
    situation = _situation(arch)
    record = paths.read_json(paths.acceleration())
    if isinstance(record, dict) and situation in record:
        return Acceleration(**record[situation])
    # One at a time: two measurements side by side would be wrong both.
    with locks.held(paths.work() / "accelerator.lock", "the accelerator", silent, Deadline(120)):
        record = paths.read_json(paths.acceleration())
        if not isinstance(record, dict) or situation not in record:
            found = decide(arch, platform.machine(), _open_kvm, _seconds)
            record = {situation: asdict(found)}
            paths.write_json(paths.acceleration(), record)
    return Acceleration(**record[situation])


def _situation(arch: str) -> str:
    """Whatever could change the answer: this boot, this QEMU, who may open the device."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    qemu = command.find(command.emulator(arch))
    changed = os.stat(qemu).st_mtime_ns
    return paths.digest_of(arch, boot, qemu, changed, os.access("/dev/kvm", os.R_OK | os.W_OK))


def decide(
    arch: str,
    host: str,
    open_kvm: Callable[[], None],
    seconds: Callable[[str, str, Deadline], float | None],
) -> Acceleration:
    """What guests of `arch` run with: `open_kvm` raises OSError, `seconds` is how long accelerator and arch took."""
    if arch != host:
        return Acceleration("tcg", f"the guest is {arch}, this host is {host}")
    try:
        open_kvm()
    except FileNotFoundError:
        return Acceleration("tcg", "there is no /dev/kvm: virtualisation is off in the firmware, or this is a VM")
    except OSError as error:
        return Acceleration("tcg", f"/dev/kvm cannot be opened ({error.strerror}): add yourself to the group kvm")
    if arch != "x86_64":
        return Acceleration("kvm", "/dev/kvm opens")
    emulated = seconds("tcg", arch, Deadline(30))
    if emulated is None:
        raise LabError("QEMU does not run at all: the measuring firmware did not end within 30 s")
    limit = max(2.0, 3 * emulated)
    real = seconds("kvm", arch, Deadline(limit))
    if real is None:
        return Acceleration("tcg", f"/dev/kvm opens, but ran nothing in {limit:.1f} s (tcg: {emulated:.2f} s)")
    if real > 2 * emulated:
        return Acceleration("tcg", f"kvm took {real:.2f} s for what tcg does in {emulated:.2f} s")
    return Acceleration("kvm", f"measured: kvm {real:.2f} s, tcg {emulated:.2f} s")


def _open_kvm() -> None:
    os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))


def _seconds(accel: str, arch: str, deadline: Deadline) -> float | None:
    """How long the fixed work took; None if it did not end in time or not by itself."""
    with tempfile.TemporaryDirectory(prefix="kmlab-accel-") as folder:
        rom = Path(folder) / "rom"
        rom.write_bytes(firmware())
        argv = [command.emulator(arch), "-accel", accel, "-machine", "q35", "-nodefaults", "-display", "none"]
        argv += ["-m", "64", "-bios", str(rom), "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        began = time.monotonic()
        try:
            command.run(argv, deadline=deadline, accept=(_DONE,))
        except CommandFailed:
            return None
        return time.monotonic() - began


def firmware() -> bytes:
    """The 64 KiB that QEMU maps below 4 GiB; the CPU starts 16 bytes before its end."""
    return (b"\xf4" * (65536 - 256) + _CODE.ljust(240, b"\0") + _RESET).ljust(65536, b"\0")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
