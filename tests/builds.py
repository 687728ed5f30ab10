"""What make said in recorded builds, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason
from kmlab.kernel.build.kbuild import Folder
from tests.places import TEST_DATA

LOGS = TEST_DATA / "kbuild"
OLD = "6.1.0-56-cloud-amd64"
NEW = "6.12.95+deb13-cloud-amd64"


def read(name: str, folder: str | None = None) -> list[Diagnostic]:
    text = (LOGS / f"{name}.log").read_text()
    return parse_diagnostics(text, PurePosixPath(folder or f"/srv/{name.rsplit('-', 1)[0]}"))


def reason(
    name: str,
    release: str = OLD,
    folder: str | None = None,
    about: Folder | None = None,
    sources: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
) -> str:
    text = (LOGS / f"{name}.log").read_text()
    said = build_reason(text, 2, read(name, folder), release, folder=about, sources=sources, config=config)
    assert said is not None and said.endswith(".") and "\n" not in said
    return said


def reason_of(line: str) -> str:
    said = build_reason(line, 2, parse_diagnostics(line, PurePosixPath("/m")), OLD)
    assert said is not None
    return said
