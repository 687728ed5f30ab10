"""Damaged and crafted .ko files: a MalformedModule, or a verdict without lines; never another error, never for ever.

By hand: `python -m tests.kernel.symbols.test_ko_fuzz 200000 SEED` says how many were tried and which took longest.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cryptography import x509

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.module.modinfo import load_order, parse_modinfo
from kmlab.kernel.signing.load_check import GuestKeyring, explain
from kmlab.kernel.signing.signature import MAGIC, PKCS7, TRAILER, read_signature, strip_signature, verify
from kmlab.kernel.symbols.elf import MalformedModule, decompress, read_object, without_debug
from kmlab.kernel.symbols.registers import find_code, window
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from tests.places import TEST_DATA

DATA = TEST_DATA
SIGNER = x509.load_der_x509_certificate((DATA / "ko-sign/signer.der").read_bytes())
IN_SUITE = 1000
"""Mutations; some 15 seconds of them."""


def signed(ko: bytes, signature: bytes) -> bytes:
    return ko + signature + TRAILER.pack(0, 0, PKCS7, 0, 0, bytes(3), len(signature)) + MAGIC


def read_seeds() -> list[bytes]:
    """Every .ko of the tests' data, the small ones more often, and with every kind of signature."""
    files = [*sorted((DATA / "ko").glob("*.ko")), DATA / "ko-sign/signdata.ko"]
    images = [file.read_bytes() for file in files]
    small = [image for image in images if len(image) < 20_000]
    tiny = small[0]
    return [*images, *small * 4, *(signed(tiny, s.read_bytes()) for s in sorted((DATA / "ko-sign").glob("*.sig")))]


NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 0x10, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFF1, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000)
LARGE = (0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def number(rng: random.Random, size: int) -> bytes:
    value = rng.choice((*NUMBERS, *LARGE, rng.getrandbits(8 * size)))
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def damage(rng: random.Random, image: bytearray, begin: int, end: int) -> None:
    """Change something between two places."""
    end = min(end, len(image))
    if begin >= end:
        return
    at = rng.randrange(begin, end)
    match rng.randrange(8):
        case 0:
            image[at] ^= 1 << rng.randrange(8)
        case 1:
            image[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 2 | 3:
            size = rng.choice((2, 4, 8))
            aligned = begin + (at - begin) // size * size
            image[aligned : aligned + size] = number(rng, size)[: max(0, len(image) - aligned)]
        case 4:
            size = min(rng.choice((4, 16, 64, 1 << 12)), end - at)
            image[at : at + size] = rng.choice((b"\0", b"\xff", b"\x80")) * size
        case 5:
            size = min(rng.randrange(1, 64), end - at)
            other = rng.randrange(begin, end)
            image[at : at + size] = image[other : other + size].ljust(size, b"\0")
        case 6:
            size = min(rng.randrange(1, 16), end - at)
            image[at : at + size] = rng.randbytes(size)
        case _:
            image[at : at + 1] = rng.choice((b"\xff\xff\xff\xff\x7f"[: end - at], b"\x00"))


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few changes, most of them where the format has a field."""
    image = bytearray(rng.choice(seeds))
    try:
        elf = read_object(bytes(image), "seed.ko")
    except MalformedModule:
        return bytes(image)
    named = [s for s in elf.sections if s.size and s.type != 8]
    debug = [s for s in named if s.name.startswith((".debug_", ".rela.debug_"))]
    other = [s for s in named if s.name.startswith((".rela", ".symtab", ".strtab", ".modinfo", ".shstrtab", ".text"))]
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        kind = rng.randrange(12)
        if kind == 0:
            damage(rng, image, 16, 64)
        elif kind <= 2:
            header = rng.choice(elf.sections).header_offset
            field, size = rng.choice(((0, 4), (4, 4), (8, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)))
            image[header + field : header + field + size] = number(rng, size)
        elif kind == 3:
            first, second = rng.choice(elf.sections).header_offset, rng.choice(elf.sections).header_offset
            image[first + 24 : first + 40] = image[second + 24 : second + 40]
        elif kind == 4:
            damage(rng, image, max(0, len(image) - 1024), len(image))
        elif kind == 5 and rng.randrange(4) == 0:
            del image[rng.randrange(len(image)) :]
        else:
            section = rng.choice(debug if debug and kind > 7 else other or named)
            # The heads of tables and units come first.
            length = rng.choice((64, section.size, section.size))
            damage(rng, image, section.offset, section.offset + min(length, section.size))
    return bytes(image)


def crash_of(frames: tuple[Frame, ...], text: str = "") -> Crash:
    known = {field.name: None for field in dataclasses.fields(Crash)}
    about = {"kind": "oops", "class_": "null-deref", "title": "BUG in outer", "function": "outer", "module": "m"}
    empty = {"frames": frames, "sections": (), "text": text, "fatal": False, "truncated": False, "fingerprint": ""}
    return Crash(**{**known, **about, **empty})  # type: ignore[arg-type]


FUNCTIONS = ("outer", "helper", "init_module", "cleanup_module", "frames_report", "spin", "tiny_init")
FRAMES = tuple(
    Frame(name, offset, size, "m", reliable=True, exact=exact)
    for name in FUNCTIONS
    for offset, size, exact in ((4, None, True), (0x24, 0x40, False), (1 << 40, 1 << 41, False))
)
GONE = "unable to handle page fault for address: ffffffffc0401010\nModules linked in: other"
SECTIONS = {"m": {".text": 0xFFFFFFFFC0401000, ".data": 0xFFFFFFFFC0402000, ".bss": 0xFFFFFFFFC0403000}}
KEYRING = GuestKeyring("debian", "6.1.0-9-amd64", "x86_64", True, certificates=(SIGNER,))


def use(image: bytes) -> int:
    """Do all that kmlab ever does with the bytes of a .ko; return how many readers refused it."""
    images = {"m.ko": image}
    gone = Frame("0xffffffffc0401004", None, None, None, reliable=True, exact=True)
    entry = (Frame("_printk", 1, 2, None, reliable=True, exact=True), Frame("do_one_initcall", 1, 2, None, True, False))
    # A verdict comes in any case.
    located(crash_of(FRAMES), images, PurePosixPath("/m"))
    located(crash_of((gone,), GONE), images, None, SECTIONS)
    located(crash_of((), GONE), images, None, SECTIONS)
    located(crash_of(entry), images, None)
    find_code(images, 0xFFFFFFFFC0401010, bytes(window(0xFFFFFFFFC0401010)[1]))
    read_signature(image)
    verify(image, SIGNER)
    without_debug(image)
    decompress(image)
    refusing: tuple[Callable[[], object], ...] = (
        lambda: load_order([parse_modinfo(image, "m.ko")]),
        lambda: explain(image, KEYRING),
        lambda: strip_signature(image),
        lambda: ModuleSymbols(image).locate_in(".text", 4),
        lambda: ModuleSymbols(image).lost_callback("_printk"),
        lambda: ModuleSymbols(image).handed_out(".text"),
    )
    refused = 0
    for each in refusing:
        try:
            each()
        except MalformedModule:
            refused += 1
    return refused


def test_no_mutation_of_a_ko_raises_anything_but_the_one_error() -> None:
    rng, seeds = random.Random(13), read_seeds()
    refused = [use(mutate(rng, seeds)) for _ in range(IN_SUITE)]
    assert min(refused) == 0 < max(refused), "some are read and some are refused, or nothing was tried"


def main(count: int, seed: int) -> None:
    rng, seeds = random.Random(seed), read_seeds()
    slowest, failed = 0.0, 0
    for turn in range(count):
        image = mutate(rng, seeds)
        began = time.monotonic()
        try:
            use(image)
        except BaseException:
            failed += 1
            Path(f"/tmp/ko-fuzz-{seed}-{turn}.ko").write_bytes(image)
            traceback.print_exc()
            if failed > 20:
                break
        took = time.monotonic() - began
        if took > max(slowest, 1.0):
            Path(f"/tmp/ko-fuzz-slow-{seed}-{turn}.ko").write_bytes(image)
        slowest = max(slowest, took)
        if turn % 2000 == 0:
            print(turn, f"slowest {slowest:.2f} s, failed {failed}", flush=True)
    print(f"{turn + 1} mutations, seed {seed}: {failed} failed, slowest {slowest:.2f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
