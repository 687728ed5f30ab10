"""Draw where the time of runs went, as SVG made from the runs' own step times (https://www.w3.org/TR/SVG2/)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.run.result import RunResult

_WIDTH, _LEFT, _RIGHT, _ROW, _HEAD = 900, 230, 90, 22, 46
_FILL = {"ok": "#4c78a8", "failed": "#d1495b", "hang": "#d1495b", "lost": "#d1495b", "skipped": "#bbbbbb"}
_BESIDE = "#9aa5b1"
"""The colour of times outside of steps: the guest's start, gaps between steps, and the end."""
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_FEW = 12
"""The most ticks."""


class Bar(NamedTuple):
    """One line of the chart."""

    label: str
    began: float
    seconds: float
    fill: str
    note: str = ""


def bars(result: RunResult) -> list[Bar]:
    """Return the parts and steps of a run in the order in which they began, and the time after the last.

    A build in the sandbox needs no guest: it may begin while that is still restored.
    """
    all_bars = [Bar(f"guest: {part.name}", part.began, part.seconds, _BESIDE) for part in result.guest_parts]
    for step in result.steps:
        note = "" if step.outcome == "ok" else step.outcome
        all_bars.append(Bar(step.name, step.began, step.seconds, _FILL.get(step.outcome, _BESIDE), note))
    all_bars.sort(key=lambda bar: bar.began)
    end = max((bar.began + bar.seconds for bar in all_bars), default=0.0)
    if result.seconds > end:
        all_bars.append(Bar("judge", end, result.seconds - end, _BESIDE, result.outcome))
    return all_bars


def svg(results: Sequence[RunResult]) -> str:
    """Return one chart of all runs, one below the other, with one time scale."""
    charts = [(result, bars(result)) for result in results]
    longest = max((r.seconds for r in results), default=0.0) or 1.0
    height = sum(_HEAD + _ROW * len(lines) for _, lines in charts) + 14
    picture = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        width=str(_WIDTH),
        height=str(height),
    )
    picture.attrib |= {"font-family": "sans-serif", "font-size": "12"}
    ET.SubElement(picture, "rect", width="100%", height="100%", fill="#ffffff")
    scale, top = (_WIDTH - _LEFT - _RIGHT) / longest, 0
    for result, lines in charts:
        _chart(picture, result, lines, top, scale, longest)
        top += _HEAD + _ROW * len(lines)
    ET.indent(picture)
    return ET.tostring(picture, encoding="unicode") + "\n"


def write(path: Path, results: Sequence[RunResult]) -> None:
    """Write the chart as an SVG file, or as a page around it if the name ends in .html."""
    check(path)
    picture = svg(results)
    if path.suffix != ".svg":
        head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>kmlab run</title></head><body>\n'
        picture = f"{head}{picture}</body></html>\n"
    paths.write_text(path, picture)


def check(path: Path) -> None:
    """Raise ConfigError unless a chart can be written to this file. Call it before the run."""
    if path.suffix not in (".svg", ".html"):
        raise ConfigError(f"--timeline {printable(str(path))}: not a chart", "choose a name that ends in .svg or .html")


def _chart(
    picture: ET.Element, result: RunResult, lines: Sequence[Bar], top: int, scale: float, longest: float
) -> None:
    title = f"{result.module} on {result.guest}: {result.outcome}, {result.seconds:.2f} s"
    _text(picture, 10, top + 18, title, {"font-weight": "bold"})
    for tick in _ticks(longest):
        x = f"{_LEFT + tick * scale:.1f}"
        foot = str(top + _HEAD + _ROW * len(lines))
        ET.SubElement(picture, "line", x1=x, x2=x, y1=str(top + _HEAD - 6), y2=foot, stroke="#dddddd")
        _text(picture, float(x), top + _HEAD - 10, f"{tick:g} s", {"fill": "#666666", "text-anchor": "middle"})
    for number, bar in enumerate(lines):
        y = top + _HEAD + _ROW * number
        _text(picture, 20, y + 14, f"{bar.label}  {bar.note}".strip())
        ET.SubElement(
            picture,
            "rect",
            x=f"{_LEFT + bar.began * scale:.1f}",
            y=str(y + 3),
            width=f"{max(bar.seconds * scale, 1):.1f}",
            height=str(_ROW - 6),
            fill=bar.fill,
        )
        _text(
            picture, _LEFT + (bar.began + bar.seconds) * scale + 5, y + 14, f"{bar.seconds:.2f} s", {"fill": "#333333"}
        )


def _ticks(longest: float) -> Iterator[float]:
    step = next((t for t in _TICKS if longest / t <= _FEW), longest)
    yield from (number * step for number in range(int(longest / step) + 1))


def _text(parent: ET.Element, x: float, y: float, text: str, attributes: Mapping[str, str] | None = None) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}"}
    ET.SubElement(parent, "text", {**place, **(attributes or {})}).text = printable(text, 80)
