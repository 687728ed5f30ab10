"""Write the C program that makes the calls of a fuzzing again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kmlab.common.events import printable
from kmlab.config.catalog import reproducer_source
from kmlab.run.torture.fuzz import DEVICE_ABSENT
from kmlab.run.torture.fuzz_calls import ARENA, ARENA_SIZE, FuzzCall


def c_program(device: str, calls: Sequence[FuzzCall], names: Mapping[int, str], about: Sequence[str] = ()) -> str:
    """Return the program. `about` are lines for people, at its top; they may be the guest's words."""
    comment = "".join(f" * {_in_comment(line)}\n" for line in about)
    body = "\n".join(f"\tstep({call.number});\n{_statement(call, names)}" for call in calls)
    text = reproducer_source().replace("@ABOUT@\n", comment).replace("@DEVICE@", device).replace("@CALLS@", body)
    return (
        text.replace("@ARENA@", f"{ARENA:#x}")
        .replace("@SIZE@", f"{ARENA_SIZE:#x}")
        .replace("@ABSENT@", str(DEVICE_ABSENT))
    )


def _in_comment(line: str) -> str:
    return printable(line, 300).replace("*/", "* /").replace("@", "(at)").rstrip("\\")


def _statement(call: FuzzCall, names: Mapping[int, str]) -> str:
    a, b, c, d = (f"{arg:#x}ul" for arg in call.args)
    file = f"file({call.slot})"
    made = {
        "open": f"open_again({call.slot}, {a});",
        "close": f"close_file({call.slot});",
        "read": f"read({file}, (void *){a}, {b});",
        "write": f"write({file}, (void *){a}, {b});",
        "lseek": f"lseek({file}, {a}, {b});",
        "ioctl": f"ioctl({file}, {a}{_named(call, names)}, {b});",
        "mmap": f"map({file}, {a}, {b}, {c}, {d});",
    }[call.kind]
    return f"{_filling(call)}\t{made}"


def _named(call: FuzzCall, names: Mapping[int, str]) -> str:
    return f" /* {names[call.args[0]]} */" if call.args[0] in names else ""


def _filling(call: FuzzCall) -> str:
    if not call.length:
        return ""
    content = "".join(f"\\x{byte:02x}" for byte in call.content)
    return f'\tfill({call.place:#x}ul, {call.length}, "{content}", {len(call.content)});\n'
