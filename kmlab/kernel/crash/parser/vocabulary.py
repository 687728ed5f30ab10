"""How the lines between the first and the last of a report begin, in all architectures."""

from __future__ import annotations

from kmlab.kernel.crash.stack_trace import is_of_registers


def is_of_reports(text: str) -> bool:
    """Whether reports have lines that begin like this one."""
    return text.startswith(_VOCABULARY) or is_of_registers(text)


# A line that begins with a space is one of theirs, too. What an architecture adds stands in its row of stack_formats.
_VOCABULARY = (
    *(" ", "\t", "<", "#", "-", "=", "CPU: ", "Code: ", "Call "),
    *("Modules linked", "Hardware name", "Workqueue: ", "Tainted: "),
    *("[0000", "[ffff", "[dead", "Oops", "Internal error", "note: ", "task:"),
    *("NMI backtrace", "Sending NMI", "rcu: ", "Showing ", "workqueue ", "pool ", "The buggy"),
    *("Memory state", ">", "flags: ", "page:", "page_type", "raw: ", "head: ", "Allocated ", "Freed "),
    *("allocated by", "freed by", "kfence-", "INFO: ", "Write of size", "Read of size", "Slab 0x"),
    *("Slab ", "Object ", "Redzone ", "Padding ", "Bytes b4", "FIX ", "Disabling", "in_atomic"),
    *("preempt_count", "RCU nest", "caller is", "irq event", "hardirqs ", "softirqs "),
    *("Preemption disabled", "other info", "stack backtrace", "which lock", "but task", "but there"),
    *("the existing", "the dependencies", "Chain exists", "1 lock", "2 locks", "3 locks", "no locks"),
    *("Possible ", "backtrace", "hex dump", "comm ", "Kernel Offset", "KASAN: ", "CPU#", '"echo '),
    *("Reported by", "value changed", "Kernel panic", "Rebooting", "SMP: ", "BUG: ", "WARNING: "),
    *(
        "handlers:",
        "[<",
        "Future ",
        "Local variable",
        "Uninit",
        "Bytes ",
        "Memory access",
        "Last potentially",
        "Key type",
    ),
)
