"""Read the results of tests out of lines, whoever printed them: a kernel, a program, or both in turns.

What is printed is not trusted. A line that says that a case failed counts wherever it stands in an output, and nothing
that follows takes it back. An output that is cut, bails out, or whose counts or numbers do not agree has a problem, and
is then no pass. Lines of others in between are allowed, as KTAP has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from kmlab.kernel.ktap.case_results import Case, Running, TestOutput, joined
from kmlab.kernel.ktap.expectations import find_case_name
from kmlab.kernel.ktap.line_types import Line, begins_nested, find_start, is_title, read_line, without_hash
from kmlab.kernel.ktap.results_tree import LOG_LINES, OUTERMOST, Level, Node, Walk

_MOST_OPEN = 16
"""Outputs with different prefixes that are read at a time."""
_MOST_LEVELS = 32


def read_test_output(lines: Iterable[str], *, program: bool = False) -> TestOutput:
    """Return the results in these lines; those of a `program` need no version line and no numbers."""
    reader = _Reader(program)
    for text in lines:
        reader.feed(text)
    return reader.finish()


class _Output:
    """One test output while it is read."""

    def __init__(self, prefix: str, kind: str, number: int, program: bool) -> None:
        self.prefix = prefix
        self._shape = _shape(prefix)
        self._program = program
        self._levels: list[Level] = []
        self._begin, self._last = number, number
        self._bailed: str | None = None
        self._proven = kind == "version"
        """Whether its lines are certain to be a test output: a first line alone may be a sentence."""
        self._kind = kind
        self._yaml: int | None = None
        """The indent of the block of YAML that describes the last result."""
        self._titled = False
        self.over = False
        """Another output has begun in its place."""

    def takes(self, text: str) -> str | None:
        """Return what a line says behind the prefix; None if it has another one."""
        if not self.prefix:
            return text
        size = len(self.prefix)
        return text[size:] if _shape(text[:size]) == self._shape else None

    def feed(self, text: str, kind: str | None, number: int) -> None:
        """Read one line, without its prefix. If it could begin an output, `kind` is how."""
        if not self._proven and self._levels and (kind == "version" or kind == self._kind == "header"):
            self.over = True
            return
        rest, depth = text, 0
        hashed = [level for level in self._levels if level.hashed]
        while depth < len(hashed) and (inner := without_hash(rest)) is not None:
            rest, depth = inner, depth + 1
        inner = without_hash(rest)
        if inner is not None and self._levels and begins_nested(inner, self._titled):
            self._leave_hashes(depth, number)
            self._push(Level(0, hashed=True, headed=True), number)
            rest = inner
        elif depth < len(hashed):
            if read_line(rest, program=self._program).kind in ("other", "header"):
                self._note(rest)
                return
            self._leave_hashes(depth, number)
        self._take(rest, number)

    def finish(self, number: int) -> TestOutput:
        """Return its results; nothing if it was none."""
        if not self._proven:
            return TestOutput()
        running = self._running()
        while len(self._levels) > 1:
            self._drop(number)
        root = self._levels[0]
        walk = Walk()
        walk.level(root, ())
        if root.plan is not None and not (walk.cases or walk.problems):
            walk.cases.append(
                Case(("all cases",), "skipped", root.plan.comment or None, span=(self._begin, self._last))
            )
        if self._bailed is not None:
            walk.problems.append(f"bailed out: {self._bailed}" if self._bailed else "bailed out")
        problems = tuple(walk.problems)
        ended_early = (running,) if running and problems else ()
        return TestOutput(tuple(walk.cases), problems, ended_early, ((self._begin, self._last),))

    # --- lines ---

    def _take(self, text: str, number: int) -> None:
        line = read_line(text, program=self._program)
        if self._in_yaml(line):
            return
        if line.kind == "other":
            self._titled = is_title(line.text)
            self._note(text)
            return
        self._last = number
        self._titled = False
        match line.kind:
            case "version":
                self._version(line, number)
            case "header":
                self._header(line, number)
            case "plan":
                self._plan(line, number)
            case "result":
                self._result(line, number)
            case _:
                self._bailed = self._bailed or line.text

    def _in_yaml(self, line: Line) -> bool:
        """Return whether a line is part of the YAML below a result: such a block is indented, and ends with dots."""
        if self._yaml is None:
            top = self._levels[-1] if self._levels else None
            if line.text == "---" and top and top.nodes and not top.log and line.indent > max(top.indent, 0):
                self._yaml = line.indent
            return self._yaml is not None
        if line.indent < self._yaml:
            self._yaml = None
            return False
        if line.text == "...":
            self._yaml = None
        else:
            self._describe(line.text)
        return True

    def _describe(self, text: str) -> None:
        """Add a line of YAML to the result that it describes."""
        node = self._levels[-1].nodes[-1]
        if len(node.log) < 2 * LOG_LINES:
            node.log.append(text)

    def _note(self, text: str) -> None:
        if self._levels:
            self._levels[-1].log.append(text.rstrip())

    def _version(self, line: Line, number: int) -> None:
        if not self._levels:
            self._push(Level(line.indent, headed=True), number)
            return
        self._leave_to(line.indent, number)
        top = self._levels[-1]
        if line.indent > top.indent and top.indent != OUTERMOST:
            self._push(Level(line.indent, headed=True), number)
        elif top.indent == OUTERMOST:
            self.over = True
        elif top.plan is not None and not top.full:
            self._push(Level(line.indent, headed=True, flat=True), number)
        elif not top.fresh:
            self._renew(top, number)

    def _header(self, line: Line, number: int) -> None:
        if not self._levels:
            self._push(Level(OUTERMOST), number)
            self._push(Level(line.indent, name=line.text), number)
            return
        self._leave_to(line.indent, number)
        top = self._levels[-1]
        if line.indent > top.indent:
            self._push(Level(line.indent, name=line.text), number)
        elif top.fresh:
            top.name = line.text
            if len(self._levels) == 1:
                self._levels.insert(0, Level(OUTERMOST, begin=number))
        else:
            top.next_name = line.text

    def _plan(self, line: Line, number: int) -> None:
        if not self._levels:
            self._push(Level(line.indent, headed=True, plan=line), number)
            return
        self._leave_to(line.indent, number)
        top = self._levels[-1]
        if line.indent > top.indent:
            self._push(Level(line.indent, name=top.next_name, headed=True, plan=line), number)
        elif top.next_name is not None and not top.fresh and len(self._levels) > 1:
            name = top.next_name
            self._drop(number)
            self._push(Level(line.indent, name=name, headed=True, plan=line), number)
        else:
            top.set_plan(line)
        self._proven = self._proven or self._kind == "header" or bool(top.nodes)

    def _result(self, line: Line, number: int) -> None:
        if not self._levels:
            self._push(Level(line.indent, headed=True), number)
        group = self._group_of(line, number)
        top = self._levels[-1]
        if group is None and line.indent > top.indent and top.indent != OUTERMOST:
            self._push(Level(line.indent), number)
            top = self._levels[-1]
        if group is not None:
            top.log.extend(group.log)
            if top.name == line.text and line.indent == top.indent and top.plan is None:
                top.name = None  # as in TAP 14, where the name stands before the group
        top.nodes.append(Node(line.text, line, top.begin, number, list(top.log), group))
        top.log.clear()
        top.begin = number + 1
        top.next_name = None
        self._proven = self._proven or (self._kind == "plan" and line.number is not None)

    def _group_of(self, line: Line, number: int) -> Level | None:
        """Leave the levels that a result ends; return the one that it is the result of."""
        group: Level | None = None
        while len(self._levels) > 1:
            top = self._levels[-1]
            ends = top.flat and (top.full or top.name == line.text)
            if top.hashed or (line.indent >= top.indent and not ends):
                break
            below = self._levels[-2]
            if below.indent <= line.indent or ends or below.hashed or len(self._levels) == 2:
                group = self._levels.pop()
                break
            self._drop(number)
        return group

    # --- levels ---

    def _push(self, level: Level, number: int) -> None:
        if len(self._levels) >= _MOST_LEVELS:
            self._levels[-1].faults.append(f"is nested deeper than {_MOST_LEVELS} levels")
            return
        level.begin = number
        self._levels.append(level)

    def _renew(self, level: Level, number: int) -> None:
        """Begin another output in place of one that is complete."""
        if len(self._levels) == 1:
            self.over = True
            return
        earlier = Level(level.indent, headed=True, plan=level.plan, nodes=level.nodes, faults=level.faults)
        level.earlier.append(earlier)
        level.plan, level.nodes, level.faults, level.begin = None, [], [], number

    def _leave_to(self, indent: int, number: int) -> None:
        """Leave the levels that a line of that indent does not belong to; they have no result line."""
        while len(self._levels) > 1 and self._levels[-1].indent > indent and not self._levels[-1].hashed:
            self._drop(number)

    def _leave_hashes(self, depth: int, number: int) -> None:
        """Leave the levels with more than `depth` hash signs. The innermost of them waits for its result."""
        while sum(level.hashed for level in self._levels) > depth:
            if self._levels[-1].hashed and sum(level.hashed for level in self._levels) == depth + 1:
                level = self._levels[-1]
                level.hashed, level.indent = False, self._levels[-2].indent + 1
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        """Leave the innermost level without a result for it."""
        level = self._levels.pop()
        around = self._levels[-1]
        if not level.headed and level.name is None:
            # Nothing has said that it is a level: these are results of the level around it, only indented.
            around.nodes += level.nodes
            around.faults += level.faults
        else:
            around.nodes.append(Node(level.name or "", None, level.begin, number, [], level))
        around.log.extend(level.log)

    def _running(self) -> Running | None:
        """Return the case that ran when the lines ended."""
        top = self._levels[-1] if self._levels else None
        if top is None or (top.full and not top.log):
            return None
        names = [level.name or "" for level in self._levels[1:]]
        name = (find_case_name(top.log) if top.name else None) or f"case {len(top.nodes) + 1}"
        return Running((*filter(None, names), name), top.begin)


class _Reader:
    """Reads lines in which there may be several outputs, one after the other or each with its own prefix."""

    def __init__(self, program: bool) -> None:
        self._program = program
        self._open: list[_Output] = []
        self._done: list[TestOutput] = []
        self._number = -1
        self._crowded = False
        """An output could not be read, because too many others had begun."""

    def feed(self, text: str) -> None:
        self._number += 1
        start = find_start(text, program=self._program)
        for output in self._open:
            body = output.takes(text)
            if body is None or (start and start.prefix != output.prefix and start.kind in ("version", "header")):
                continue
            output.feed(body, start.kind if start else None, self._number)
            if output.over:
                self._close(output)
                break
            return
        if start and len(self._open) >= _MOST_OPEN:
            self._crowded = True
        elif start:
            output = _Output(start.prefix, start.kind, self._number, self._program)
            # The longest prefix is tried first.
            self._open = sorted([*self._open, output], key=lambda each: -len(each.prefix))
            output.feed(text[len(start.prefix) :], start.kind, self._number)

    def finish(self) -> TestOutput:
        for output in list(self._open):
            self._close(output)
        found = joined(sorted(self._done, key=lambda done: done.spans))
        if not self._crowded:
            return found
        problem = f"more than {_MOST_OPEN} test outputs with different prefixes began and did not end"
        return replace(found, problems=(*found.problems, problem))

    def _close(self, output: _Output) -> None:
        self._open.remove(output)
        done = output.finish(self._number)
        if done:
            self._done.append(done)


def _shape(prefix: str) -> str:
    """Return a prefix without its numbers, which may be times."""
    return re.sub(r"[ \d]", "0", prefix)
