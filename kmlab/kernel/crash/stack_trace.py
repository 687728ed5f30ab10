"""Stack frames in the kernel's own words, and which one is to blame (lib/vsprintf.c, arch/*/kernel/)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Frame(NamedTuple):
    """One place in a stack trace."""

    function: str
    """The symbol as printed, with suffixes such as `.constprop.0`; or `0x…` where there was no symbol."""
    offset: int | None
    size: int | None
    """The symbol's size, which tells functions of one name apart."""
    module: str | None
    reliable: bool
    """False for a `? ` frame: an address on the stack that may be left over from an earlier call."""
    exact: bool
    """The address is the instruction itself (RIP, pc), not the one after a call."""
    file: str | None = None
    line: int | None = None
    inlined: bool = False
    own: bool = True
    """file, line, inlined and own, whether the file is the module's and no header of the kernel's, are filled in by
    whoever has the module's debug information.
    """

    @property
    def name(self) -> str:
        """The function as its author knows it."""
        return plain_name(self.function)


class Section(NamedTuple):
    """A stack beside the main one: who allocated, who freed, another CPU, an earlier lock."""

    name: str
    frames: tuple[Frame, ...]


def parse_frame(text: str) -> Frame | None:
    """The frame that a whole line shows, or None."""
    # Every symbol of a trace is printed with its offset, bar the rare raw address and decoded traces.
    if "+0x" in text:
        found = _FRAME.match(text)
        if not found or (found["exact"] or "").startswith("lr"):
            return None
        return _frame(found, exact=bool(found["exact"]), reliable=not found["guess"])
    if text.startswith(("RIP: 0010:", "pc : ")):
        raw = _RAW.match(text)
        if raw:
            return Frame(raw[1], None, None, None, reliable=True, exact=True)
    if "(" in text:
        decoded = _DECODED.match(text)
        if decoded:
            return Frame(decoded[3], None, None, decoded[4], not decoded[2], bool(decoded[1]))
    return None


def find_symbol(text: str) -> Frame | None:
    """The first `function+off/size [module]` anywhere in a line, taken as an exact place."""
    if "+0x" not in text:
        return None
    found = _SYMBOL.search(text)
    return _frame(found, exact=True, reliable=True) if found else None


def plain_name(function: str) -> str:
    """A function without what compilers and the kernel's own padding add to its name."""
    name = function.removeprefix("__pfx_").lstrip(".")
    return _SUFFIX.split(name, maxsplit=1)[0] or function


def blame(
    frames: Sequence[Frame], sections: Iterable[Section], own: frozenset[str], hang: bool = False
) -> Frame | None:
    """The module's own innermost reliable frame, else the first of the kernel's that is no mere helper."""

    def mine(frame: Frame) -> bool:
        return frame.module in own if own else frame.module is not None

    def first(candidates: Iterable[Frame]) -> Frame | None:
        return next(iter(candidates), None)

    found = first(f for f in frames if f.reliable and mine(f))
    if found:
        return found
    for section in sections:
        found = first(f for f in section.frames if f.reliable and mine(f))
        if found:
            return found
    # A stalled CPU's trace begins with the watchdog that looked; what it interrupted begins at the second
    # RIP.
    start = next((i for i, f in enumerate(frames) if f.exact and i), 0) if hang else 0
    named = [f for f in frames[start:] if not f.function.startswith("0x")]
    return (
        first(f for f in named if f.reliable and not is_helper(f))
        or first(f for f in frames if mine(f))
        or first(f for f in named if f.reliable)
    )


def is_helper(frame: Frame) -> bool:
    """Whether this is code of the kernel's that reports, copies, locks or waits on behalf of its caller."""
    return frame.module is None and bool(_HELPERS.match(frame.name))


# An address before the name was printed until 4.x, and still is by kmemleak; `[module hash]` is a build ID
# (CONFIG_STACKTRACE_BUILD_ID); arm64 marks where a frame came from, as `(P)`.
_NAME = r"(?P<function>[A-Za-z_.$][\w.$]{0,255})\+0x(?P<offset>[0-9a-f]{1,16})/0x(?P<size>[0-9a-f]{1,16})"
_MODULE = r"(?: \[(?P<module>[\w-]{1,64})[^\]\n]{0,80}\])?"
_ADDRESS = r"(?:\[<[0-9a-fA-FxX]{1,18}>\]|\(_*ptrval_*\)) {0,2}"
_FRAME = re.compile(
    rf"\s{{0,16}}(?:(?P<exact>RIP: 0010:|EIP: (?:0060:)?|pc ?: {{0,2}}|lr ?: {{0,2}})(?:{_ADDRESS}){{0,2}}"
    rf"|(?:{_ADDRESS})?)"
    rf"(?P<guess>\? )?{_NAME}{_MODULE}(?: \([A-Z]{{1,4}}\))?\s{{0,4}}(?:\(.{{0,512}}\))?\s{{0,4}}$"
)
_SYMBOL = re.compile(_NAME + _MODULE)
_RAW = re.compile(r"(?:RIP: 0010:|pc : )(?:\[<[0-9a-f]{1,18}>\] ?)?(0x[0-9a-f]{1,16})\s{0,4}$")
_DECODED = re.compile(
    r"\s{0,16}(RIP: 0010:)?(\? )?([A-Za-z_][\w.]{0,255}) \([^()\s]{1,255}:\d{1,7}[^()]{0,512}\)(?:"
    r" ([\w-]{1,64}))?\s{0,4}$"
)
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm|lto_priv|localalias|\d)")

_HELPERS = re.compile(
    r"(?:"
    # those that print the report
    r"_{0,2}(?:dump_stack|show_|panic|die|warn_|report_|print_|oops_|bust_)\w*|__warn|handle_bug|kunit_\w*"
    r"|(?:asm_)?(?:exc|sysvec|common)_\w+|error_entry|ret_from_\w+|do_(?:trap|error_trap|invalid_op)\w*"
    r"|invalid_op"
    r"|(?:page_fault_oops|no_context|_{0,2}bad_area\w*|kernelmode_fixup_or_oops|do_(?:user|kern)_addr_fault)"
    r"|fixup_\w+|search_\w*exception\w*|(?:do_|async_|handle_)?page_fault|spurious_\w+"
    # arm64's way into them
    r"|el[01]\w*|do_(?:mem_abort|translation_fault|page_fault|sea|el1_\w+|debug_exception|bad_area"
    r"|undefinstr|serror)"
    r"|_{0,2}do_kernel_fault|die_kernel_fault|(?:bug|brk|ubsan|kasan|cfi)_(?:brk_)?handler|call_(?:break"
    r"|undef)_hook"
    r"|arm64_serror_panic|arm64_force_\w+|handle_bad_stack|vectors|secondary_\w+"
    # the sanitizers and checks
    r"|_{0,3}(?:kasan|asan|kmsan|msan|kcsan|tsan|ubsan|kfence|hwasan)_\w+|val_to_string"
    r"|check_memory_region\w*"
    r"|refcount_\w+|kref_\w+|_{0,2}list_(?:add|del)\w*|_{0,2}fortify_\w+|debug_(?:print_)?object\w*"
    r"|debug_check_\w+"
    r"|usercopy_\w+|_{0,2}check_(?:object_size|heap_object|preemption_disabled|bytes\w*|object|slab)"
    r"|check_\w*lock\w*"
    r"|_{0,3}might_(?:sleep|resched|fault)\w*|debug_smp_processor_id|_{0,2}this_cpu_preempt_check"
    r"|spin_(?:bug|dump)"
    r"|__stack_chk_fail|check_panic_on_warn|lockdep_\w+|debug_lock\w*|validate_chain|mark_lock\w*"
    # locks
    r"|_{0,3}(?:raw_|do_raw_)?(?:spin|read|write|rwlock)_\w*(?:lock|contended)\w*|(?:native_|pv_"
    r"|__pv_)?queued_\w+"
    r"|native_queued_\w+|_{0,2}(?:rt_|ww_)?mutex_\w+|rwsem_\w+|_{0,2}(?:down|up)(?:_\w+)?|_{0,2}lock_\w+"
    r"|percpu_down_\w+"
    # waiting
    r"|_{0,2}schedule\w*|schedule_\w+|_{0,2}preempt_\w+|io_schedule\w*|_{0,2}cond_resched\w*"
    r"|__switch_to\w*|context_switch"
    r"|(?:do_)?_{0,2}wait_(?:for|event|rcu|on)_\w+|wait_\w+|finish_wait|m?sleep\w*|usleep_\w+|kthread_stop\w*"
    r"|_{0,2}(?:synchronize|rcu|srcu|call_rcu)_\w+|_{0,2}flush_\w+|_{0,2}cancel_\w*work\w*|drain_\w+"
    r"|n?delay\w*|_{0,2}[un]?delay"
    r"|_{0,2}(?:try_to_)?(?:del|timer_delete|hrtimer_cancel)\w*|__const_udelay|complete\w*"
    # memory and strings
    r"|_{0,4}k(?:v|z|m)?(?:alloc|free|calloc|realloc|memdup|strdup)\w*|_{0,2}kmem_cache_\w+|_{0,3}slab_\w+"
    r"|_{0,2}do_kmalloc\w*"
    r"|object_err|free_(?:debug|to_partial|consistency|slab)\w*|alloc_(?:debug|consistency)\w*"
    r"|set_track\w*|stack_trace_save\w*"
    r"|slub_\w+|get_partial\w*|_{0,2}new_slab|v(?:m|z)?(?:alloc|free)\w*|_{0,2}(?:alloc"
    r"|free)_(?:frozen_)?pages?\w*|qlist_\w+"
    r"|_{0,2}pi_\w+|_{0,3}mem(?:cpy|set|move|cmp|chr|scan)\w*|_{0,2}str(?:n?cpy|n?len|n?cmp|l?cat|r?chr"
    r"|s?cpy|lcpy|scpy_pad)\w*|_{0,2}(?:_copy|copy)_\w+|rep_\w+|clear_(?:user|page)\w*"
    # watchdogs and interrupts
    r"|nmi_\w+|(?:arch_)?trigger_\w*backtrace\w*|watchdog_\w+|_{0,2}hrtimer_\w+|update_process_times"
    r"|tick_\w+|_{0,2}sysvec_\w+"
    r"|_{0,2}apic_\w+|smp_apic_\w+|(?:local|tick)_\w*timer\w*|_{0,2}irq_\w+|_{0,2}do_softirq\w*"
    r"|do_softirq_own_stack"
    r"|(?:__)?handle_(?:softirqs|irq\w*|domain_irq|percpu\w*)|generic_handle_\w+|gic_\w+|arch_timer_\w+"
    r"|call_on_irq_stack"
    r")$"
)


def _frame(found: re.Match[str], exact: bool, reliable: bool) -> Frame:
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    return Frame(found["function"], offset, size, found["module"], reliable, exact)
