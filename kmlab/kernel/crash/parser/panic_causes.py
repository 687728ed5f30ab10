"""Which report a panic is the end of, by the panic's words (kernel/panic.c)."""

from __future__ import annotations

import re

from kmlab.kernel.crash.parser.report import Report
from kmlab.kernel.crash.patterns import traits_of


def may_cause(report: Report, text: str) -> bool:
    """Whether a panic with these words is what the report led to."""
    if report.progress.fatal or report.provisional:
        return False
    said = text.partition("not syncing: ")[2].strip()
    if len(said) >= _WORDS and any(said in line for line in report.text.lines):
        return True
    class_ = report.subject.class_
    for words, causes in _PANICS:
        if words.search(text):
            return bool(causes & {class_, *traits_of(class_), "any", report.subject.kind})
    return report.dying


_WORDS = 4
"""Characters of a panic's message that are enough to find it again in the report that led to it."""
_PANICS: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = (
    (re.compile(r"panic_on_warn|panic_on_taint"), frozenset({"any"})),
    (re.compile(r"kasan\.fault|kasan_multi_shot|KASAN"), frozenset({"kasan"})),
    (re.compile(r"kmsan\.panic|panic_on_kmsan"), frozenset({"kmsan"})),
    (re.compile(r"softlockup|hung_task|RCU Stall|(?i:hard lockup)|workqueue"), frozenset({"hang"})),
    (
        re.compile(
            r"Fatal exception|Oops|[Aa]ttempted to kill|Aiee|[Ff]atal (?:machine|hardware|error)|kernel stack overflow"
            r"|SError|halted|double fault|bad mode|Unrecoverable|BUG!|Unhandled exception"
        ),
        frozenset({"deadly", "stack-dump"}),
    ),
)
"""What a panic says, and the classes, kinds or traits of what it can be the end of."""
