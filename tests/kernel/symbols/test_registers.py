"""Where a CPU is, from QEMU's registers and the bytes of code there."""

from __future__ import annotations

from kmlab.kernel.symbols.registers import find_code, parse_bytes, parse_registers, window
from tests.places import TEST_DATA

DATA = TEST_DATA / "ko"
REGISTERS = """
CPU#0
RAX=0000000000000000 RBX=ffffffffc05a0000
RIP=ffffffffc05a0017 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0

CPU#1
RIP=ffffffffab017a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""


def test_every_cpu_is_read_and_the_halted_ones_are_told_apart() -> None:
    states = parse_registers(REGISTERS)
    assert [(s.cpu, hex(s.address), s.halted) for s in states] == [
        (0, "0xffffffffc05a0017", False),
        (1, "0xffffffffab017a0b", True),
    ]


def test_bytes_are_read_from_the_monitor() -> None:
    text = "ffffffffc05a0010: 0x11 0xc0 0xf3 0x90\nffffffffc05a0014: 0xeb 0xf2\n"
    assert parse_bytes(text) == bytes.fromhex("11c0f390ebf2")


def test_the_window_never_leaves_the_page() -> None:
    assert window(0xFFFFFFFFC05A0017) == (0xFFFFFFFFC05A0000, 0x17 + 64)
    first, size = window(0xFFFFFFFFC05A0FF0)
    assert first + size == 0xFFFFFFFFC05A1000


def test_code_of_a_module_is_found_though_the_kernel_patched_it() -> None:
    # spin_irqs_off as a guest had it: __fentry__ is a nop, paravirtual calls are cli and sti, addresses are filled in.
    patched = bytes.fromhex("0f1f440000fa0f1f4400008a05f120000084c07504f390ebf2fb0f1f440000e9aabbccdd")
    address = 0xFFFFFFFFC05A0017
    first, size = window(address)
    code = patched.ljust(size, b"\xcc")
    images = {"irq_off_loop.ko": (DATA / "irq_off_loop.ko").read_bytes()}
    assert first == 0xFFFFFFFFC05A0000
    assert find_code(images, address, code) == ("irq_off_loop.ko", ".text.unlikely", 0x17)


def test_other_code_is_not_taken_for_the_module_s() -> None:
    images = {"irq_off_loop.ko": (DATA / "irq_off_loop.ko").read_bytes()}
    address = 0xFFFFFFFFC05A0017
    assert find_code(images, address, bytes(window(address)[1])) is None
    assert find_code(images, address, bytes(range(window(address)[1]))) is None


def test_a_function_of_a_few_bytes_is_found_by_how_every_function_begins() -> None:
    # All that was left as it is in the file: pause, and a jump back to it.
    patched = bytes.fromhex("0f1f440000fa0f1f440000f390ebfc")
    address = 0xFFFFFFFFC091200D
    images = {"tiny_loop.ko": (DATA / "tiny_loop.ko").read_bytes()}
    assert find_code(images, address, patched.ljust(window(address)[1], b"\0")) == ("tiny_loop.ko", ".text", 0xD)
    other = bytes.fromhex("55488985c8fa0f1f440000f390ebfc")
    assert find_code(images, address, other.ljust(window(address)[1], b"\0")) is None
