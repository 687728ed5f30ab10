"""Where a CPU was that was sent to code which had gone (arch/x86/mm/fault.c, arch/x86/kernel/traps.c).

The kernel may have a name for such an address all the same. While anything is traced it keeps those of modules' init
functions, whose memory the next module gets (ftrace_free_mem() in kernel/trace/ftrace.c); systemd's BPF programs are
enough for that. So a timer that outlived its module was seen to run another module's init function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.symbols.registers import PAGE

_NOT_THERE = re.compile(r"#PF: error_code\(0x0010\) - not-present page")
"""An instruction was to be fetched, by the kernel, from no page at all."""
_FAULT = re.compile(r"for address: (?:0x)?([0-9a-f]{16})\b")
_POISON = re.compile(r"Code: .*<cc>(?: cc){16,}\s*$")
"""What stands where code was freed, as its memory is kept on x86-64 since Linux kernel commit 64f6a4e10c05 ("x86:
re-enable EXECMEM_ROX support") (in v6.15).
"""
_REGISTER = re.compile(r"\bR(?:[ABCD]X|[SD]I|BP|\d\d): ([0-9a-f]{16})\b")
_RAW = re.compile(r"0x[0-9a-f]{9,16}")
_OF_MODULES = range(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000)
"""Where modules lie on x86-64 (Documentation/arch/x86/x86_64/mm.rst)."""


def vanished(class_: str, frame: Frame, lines: Sequence[str]) -> Frame | None:
    """Return the frame of the instruction named by its address if nothing was there any more; else None."""
    if not frame.exact:
        return None
    address = _poisoned(frame, lines) if class_ == "int3" else _missing(frame, lines)
    return None if address is None else Frame(f"0x{address:x}", None, None, None, reliable=True, exact=True)


def _missing(frame: Frame, lines: Sequence[str]) -> int | None:
    if frame.module is None or not any(map(_NOT_THERE.match, lines)):
        return None
    fault = next(filter(None, map(_FAULT.search, lines)), None)
    return int(fault[1], 16) if fault else None


def _poisoned(frame: Frame, lines: Sequence[str]) -> int | None:
    """Of the trap that stands there now, where the kernel's own register points behind it."""
    if not any(map(_POISON.match, lines)):
        return None
    if _RAW.fullmatch(frame.function):
        return int(frame.function, 16) - 1
    held = {int(value, 16) for line in lines for value in _REGISTER.findall(line)}
    if frame.module is None or frame.offset is None or frame.size is None:
        return None
    # The name is the last one in the other's memory, which ended with a page: so much is known of the address. Who
    # called has the function's own address still; it is on the same page where the function is not a long one.
    place = (frame.offset - 1 - frame.size) % PAGE
    found = {value - value % PAGE + place for value in held if value in _OF_MODULES}
    return found.pop() if len(found) == 1 else None
