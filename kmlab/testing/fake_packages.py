"""Build real Debian packages, for a fake archive and for tests."""

from __future__ import annotations

from pathlib import Path

from kmlab.common.events import Deadline
from kmlab.host.process import command


def package_file(folder: Path, name: str, depends: str = "", arch: str = "amd64") -> Path:
    """Build an empty Debian package."""
    about = folder / f"tree-{name}" / "DEBIAN" / "control"
    about.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"Package: {name}", "Version: 1", f"Architecture: {arch}", "Maintainer: nobody <nobody@localhost>"]
    lines += [f"Depends: {depends}"] if depends else []
    about.write_text("\n".join((*lines, "Description: a stand-in")) + "\n", encoding="utf-8")
    made = folder / f"{name}_1_{arch}.deb"
    command.run(["dpkg-deb", "--build", "--root-owner-group", about.parents[1], made], deadline=Deadline(30))
    return made
