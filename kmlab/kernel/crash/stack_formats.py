"""How each architecture writes registers and stack frames, one row per architecture (arch/*/kernel/traps.c, process.c).

All rows together make one pattern, so a log needs no word about its architecture. A new architecture is one row here
and one log in tests/data/oops.
"""

from __future__ import annotations

from typing import NamedTuple

_HEX = r"[0-9a-fA-F]{8,18}"
ADDRESS = r"(?:\[<(?:[0-9a-fA-FxX]{1,18}| {0,16}\(null\))>\]|\(_*ptrval_*\)) {0,2}"
"""Before a symbol until 4.x, and still on some architectures and in kmemleak's reports."""


class StackFormat(NamedTuple):
    """How one architecture writes where it was."""

    architecture: str
    here: str
    """What stands before the symbol of the instruction itself, as a pattern."""
    caller: str
    """What stands before the symbol of a link register. It is not a frame: the trace names it again, or it is old."""
    frame: str
    """What stands before the symbol of a stack frame, if that is more than an address in `[<…>]`."""
    words: str
    """How lines begin that belong to a report of this architecture alone, separated by `|`."""


FORMATS = (
    StackFormat(
        "x86-64",
        # e030 is the kernel's code segment under Xen. `IP:` is the line before the oops, until 4.14.
        here=rf"RIP: (?:0010|e030):(?:{ADDRESS}){{0,2}}|IP: (?:{ADDRESS})?",
        caller=r"(?!)",
        frame=r"(?!)",
        words=(
            "RIP: |RIP |RSP: |RAX: |RDX: |RBP: |R10: |R13: |FS: |CS: |CR2: |DR0: |DR3: |PKRU: |ORIG_RAX|PGD |"
            "PUD |#PF|IP: "
        ),
    ),
    StackFormat(
        "i386",
        here=rf"EIP: (?:0060:)?(?:{ADDRESS})?|EIP is at ",
        caller=r"(?!)",
        frame=r"(?!)",
        words="EIP: |EIP |EAX: |ESI: |DS: |CR0: |EFLAGS: |*pde|*pdpt|task: |Process |Stack:",
    ),
    StackFormat(
        "arm64",
        here=r"(?:pc|PC) ?: {0,2}|PC is at ",
        caller=r"(?:lr|LR) ?: {0,2}|LR is at ",
        frame=r"(?!)",
        words=(
            "pc : |lr : |sp : |pstate|x0 |x1|x2|x3|x5|x6|x8|x9|Mem abort|Data abort|user pgtable|swapper pgtable|"
            "pgd = |PC is at |LR is at |Exception stack|ESR: |FAR: |el1"
        ),
    ),
    StackFormat(
        "arm",
        here=r"PC is at ",
        caller=r"LR is at ",
        frame=r"(?!)",
        words=(
            "pc : |sp : |r10: |r7 : |r3 : |r7:|r4:|r5:|r6:|r8:|r9:|r10:|Flags: |Control: |Process |Stack: |8<---|"
            "pgd = |Backtrace|Register |Exception stack"
        ),
    ),
    StackFormat(
        "riscv",
        here=rf"epc ?: (?:{_HEX} )?(?:{ADDRESS})?",
        caller=rf"ra ?: (?:{_HEX} )?",
        frame=r"(?!)",
        words=(
            "epc|sepc|sstatus: |"
            "ra : |gp : |tp : |t0 : |t1 : |t2 : |t5 : |s1 : |s2 : |s5 : |s8 : |s11: |a0 : |a1 : |a2 : |a5 : |"
            "status: "
        ),
    ),
    StackFormat(
        "MIPS",
        here=rf"epc {{0,4}}: {_HEX} ",
        caller=rf"ra {{0,4}}: {_HEX} ",
        frame=r"(?!)",
        words="$ |$1|$2|epc |ra |Hi |Lo |Acx |Status:|Cause |BadVA |PrId |Process |Stack :",
    ),
    StackFormat(
        "LoongArch",
        here=rf"ERA: {_HEX} ",
        caller=rf"ra: {_HEX} ",
        frame=r"(?!)",
        words=(
            "pc |a0 |a4 |t0 |t4 |t8 |s1 |s5 |ra: |ERA: |CRMD: |PRMD: |EUEN: |ECFG: |ESTAT: |BADV: |PRID: |"
            "Process |Stack : "
        ),
    ),
    StackFormat(
        "powerpc",
        here=rf"NIP \[{_HEX}\] |pc: {_HEX}: |--- (?:interrupt|Exception): \w{{1,8}} at ",
        caller=rf"LR \[{_HEX}\] |lr: {_HEX}: ",
        frame=rf"\[{_HEX}\] \[?{_HEX}\]? ",
        words=(
            "NIP|LR |REGS: |MSR: |CFAR: |DAR: |DSISR: |GPR|CTR: |Instruction dump|Faulting ins|BE |LE |PACA|"
            "TASK = |---|Code: "
        ),
    ),
    StackFormat(
        "s390x",
        here=rf"Krnl PSW : {_HEX} {_HEX} \((?:{ADDRESS})?",
        caller=rf"Last Breaking-Event-Address:\s{{0,4}}(?:{ADDRESS})",
        frame=rf"\({ADDRESS}",
        words="Krnl |Failing address|Fault in |AS:|R:0 T:|Last Breaking|Modules linked|Process |Call Trace|%r|>",
    ),
)

HERE = "|".join(row.here for row in FORMATS)
CALLER = "|".join(row.caller for row in FORMATS)
FRAME = "|".join(row.frame for row in FORMATS)
WORDS = tuple(dict.fromkeys(word for row in FORMATS for word in row.words.split("|")))
