"""Choose the accelerator of guests by measuring, because KVM may be broken although /dev/kvm can be opened.

A small firmware of our own does a fixed amount of work and exits through QEMU's isa-debug-exit port. Nested or broken
KVM opens, creates a VM, and then runs nothing. libvirt and `kvm-ok` do not notice that.
"""

from __future__ import annotations

import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
"""Numbers from include/uapi/linux/kvm.h. A host's kernel can be built without SMM (CONFIG_KVM_SMM)."""
_RESET = bytes.fromhex("e90dff")
_DONE = (0x31 << 1) | 1
"""The exit status of isa-debug-exit: the value written, shifted, with the lowest bit set."""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """The accelerator of guests, and the reason."""

    name: str
    """kvm or tcg."""
    why: str
    nested: bool = False
    """Whether KVM runs in a virtual machine: guests then wait for two schedulers."""


def choose(accel: str, arch: str = "") -> Acceleration:
    """Choose by lab.yaml's `accel`: auto, kvm or tcg. Measure once per boot of the host and QEMU build."""
    arch = arch or platform.machine()
    if accel == "tcg":
        return Acceleration("tcg", "set in lab.yaml")
    measured = _measured(arch)
    if accel == "kvm" and measured.name != "kvm":
        raise LabError(f"accel: kvm, but {measured.why}", "set `accel: auto` to use kvm if it works, otherwise tcg")
    return measured


def has_smm(accelerator: str, arch: str) -> bool:
    """Return whether guests can have System Management Mode. TCG always has it; KVM reports whether it has it."""
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


def last_choice(accel: str) -> Acceleration | None:
    """Return the result of `choose` if it is known without measuring, otherwise None."""
    if accel == "tcg":
        return Acceleration("tcg", "set in lab.yaml")
    record = paths.read_json(paths.acceleration()) or {}
    choice = record.get(_cache_key(platform.machine())) if isinstance(record, dict) else None
    return Acceleration(**choice) if choice else None


def _measured(arch: str) -> Acceleration:
    key = _cache_key(arch)
    record = paths.read_json(paths.acceleration())
    if isinstance(record, dict) and key in record:
        return Acceleration(**record[key])
    # One at a time, because two measurements in parallel would both be wrong.
    with locks.held(paths.work() / "accelerator.lock", "the accelerator", silent, Deadline(120)):
        record = paths.read_json(paths.acceleration())
        if not isinstance(record, dict) or key not in record:
            choice = decide(arch, platform.machine(), _open_kvm, _seconds)
            if choice.name == "kvm":
                choice = replace(choice, nested=is_virtual(_read("/proc/cpuinfo")))
            record = {key: asdict(choice)}
            paths.write_json(paths.acceleration(), record)
    return Acceleration(**record[key])


def _cache_key(arch: str) -> str:
    """Return a digest of everything that can change the result: the boot, the QEMU, the access to /dev/kvm."""
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
    """Decide on the accelerator of guests of `arch`.

    `open_kvm` raises OSError if it cannot. `seconds` measures an accelerator for an architecture; None: not in time.
    """
    if arch != host:
        return Acceleration("tcg", f"the guest is {arch}, this host is {host}")
    try:
        open_kvm()
    except FileNotFoundError:
        return Acceleration("tcg", "there is no /dev/kvm: virtualisation is disabled in the firmware, or this is a VM")
    except OSError as error:
        return Acceleration("tcg", f"/dev/kvm cannot be opened ({error.strerror}): add yourself to the group kvm")
    if arch != "x86_64":
        return Acceleration("kvm", "/dev/kvm opens")
    emulated = seconds("tcg", arch, Deadline(30))
    if emulated is None:
        raise LabError("QEMU does not work: the measuring firmware did not end within 30 s")
    limit = max(2.0, 3 * emulated)
    real = seconds("kvm", arch, Deadline(limit))
    if real is None:
        return Acceleration("tcg", f"/dev/kvm opens, but ran nothing in {limit:.1f} s (tcg: {emulated:.2f} s)")
    if real > 2 * emulated:
        return Acceleration("tcg", f"kvm took {real:.2f} s, tcg only {emulated:.2f} s for the same work")
    return Acceleration("kvm", f"measured: kvm {real:.2f} s, tcg {emulated:.2f} s")


def is_virtual(cpuinfo: str) -> bool:
    """Return whether /proc/cpuinfo is that of a virtual machine (CPUID, leaf 1). arm64 does not say it there."""
    return any("hypervisor" in line.split() for line in cpuinfo.splitlines() if line.startswith("flags"))


def _open_kvm() -> None:
    os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))


def _seconds(accel: str, arch: str, deadline: Deadline) -> float | None:
    """Return the seconds that the fixed work took; None if it did not succeed before the deadline."""
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
    """Return the 64 KiB that QEMU maps below 4 GiB. The CPU starts 16 bytes before their end."""
    return (b"\xf4" * (65536 - 256) + _CODE.ljust(240, b"\0") + _RESET).ljust(65536, b"\0")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
