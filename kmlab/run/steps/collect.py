"""Bring files of the guest to the host, while the module is loaded. Names and content are the guest's words."""

from __future__ import annotations

import base64
import functools
import re
import shlex
from collections.abc import Sequence

from kmlab.common.events import Note
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import CollectedFile, CollectStepResult, Results
from kmlab.run.context.run_context import RunContext

_MOST_FILES = 200
_LONGEST_PATH = 4096
_SCRIPT = " ".join(
    (
        "n=0; left={limit}; for f in {patterns}; do",
        '[ -f "$f" ] && [ -r "$f" ] || continue; n=$((n+1)); [ $n -le {files} ] || break;',
        'd=$(head -c $((left+1)) -- "$f" | base64 -w0); printf \'%s\\0%s\\0\' "$f" "$d";',
        "left=$((left-${{#d}}*3/4)); [ $left -ge 0 ] || break; done",
    )
)
"""Each file's path and its content as base64, each with a zero byte behind it. Files of sysfs have no true size."""


def collect(context: RunContext, so_far: Results) -> Sequence[CollectStepResult]:
    """Read the files that lab.yaml's `collect` names, also after an exercise that failed."""
    module = context.module
    if not module.collect or not context.usable or "load" not in context.options.steps:
        return ()
    with context.step("collect") as timer:
        script = _SCRIPT.format(
            limit=module.collect_max, files=_MOST_FILES, patterns=" ".join(map(shell_pattern, module.collect))
        )
        run = functools.partial(guest_commands.collect, context.guest, context.folder, script)
        result, facts = run_in_guest(context, so_far, timer, run, context.exercise_patience)
        facts["transcript"] = ""  # the files are in the folder of the run
        files, dropped = parse_files(result.answer.out, module.collect_max)
        timer.stage.detail = f"{len(files)} files, {sum(len(file.content) for file in files)} bytes"
    if dropped:
        message = (
            f"collect: more than {module.collect_max} bytes (collect_max) or {_MOST_FILES} files: the rest is missing"
        )
        context.events(Note(context.guest.record.name, message))
    return [timer.result(CollectStepResult, files=tuple(files), **facts)]


def shell_pattern(pattern: str) -> str:
    """Return a pattern for the guest's shell in which only * ? and [ ] have a meaning."""
    return "".join(
        part if part in "*?[]" else shlex.quote(part) for part in re.findall(r"[*?\[\]]|[^*?\[\]]+", pattern)
    )


def parse_files(answer: bytes, limit: int) -> tuple[list[CollectedFile], bool]:
    """Return the files in the guest's answer, and whether some are missing: beyond the limits, or not readable."""
    words = answer.split(b"\0")
    files: list[CollectedFile] = []
    left, dropped = limit, len(words) % 2 == 0
    for path, encoded in zip(words[:-1:2], words[1:-1:2], strict=False):
        try:
            content = base64.b64decode(encoded, validate=True)
        except ValueError:
            content = b""
            dropped = True
        left -= len(content)
        if left < 0 or len(files) >= _MOST_FILES or len(path) > _LONGEST_PATH:
            return files, True
        files.append(CollectedFile(path.decode("utf-8", "surrogateescape"), content))
    return files, dropped
