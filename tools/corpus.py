"""Make tests/data/oops/guest-*.txt from the runs of kmlab's own guests.

    kmlab test --all --lab tests/data/crashers/lab.yaml; kmlab test       (an hour where guests are emulated)
    .venv/bin/python tools/corpus.py lab.yaml tests/data/crashers/lab.yaml

With `--boots`, also make benign-boot-*.txt from the first boot of every kernel with a checkpoint in the cache.

Take the newest run of each module on each kernel that met lab.yaml's expectations. So the claims in a log's header
(outcome, guilty function, the line that is marked in the source) come from the module's author, who wrote them before
the log existed. A crasher's log comes with the .ko for its source lines.
tests/kernel/crash/test_oops.py defines the format.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kmlab.common import paths
from kmlab.config.lab import Lab, load_lab
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.crash.unloaded_module import Sections
from kmlab.kernel.log.records import parse_log
from kmlab.kernel.symbols.elf import read_object
from kmlab.provision.lifecycle import lab_files
from kmlab.run.build.source_folder import folder_in_guest
from kmlab.run.result import crash_to_json
from tests import crashers

DATA = Path(__file__).parents[1] / "tests" / "data"
_LARGEST = 100_000
_ASKED = re.compile(rb"^.*sysrq: Show State\r?$", re.MULTILINE)


def main(lab: Lab) -> None:
    newest: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    for folder in sorted(lab_files(lab).runs.iterdir()):
        record = folder / "result.json"
        if record.exists():
            (result,) = json.loads(record.read_text())["results"]
            newest[result["module"], ".".join(str(result["kernel"]).split(".")[:2])] = (folder, result)
    for (name, series), (folder, result) in sorted(newest.items()):
        if result["outcome"] in lab.modules[result["module"]].expect.outcome and result["outcome"] != "build-failed":
            _keep(lab, name, series, folder, result)
    _forget_unused()


def boots() -> None:
    """Collect what each kernel printed during a boot without errors."""
    for folder in paths.checkpoints().iterdir():
        checkpoint, log = paths.read_json(folder / "checkpoint.json"), folder / "boot.log"
        if isinstance(checkpoint, dict) and log.exists():
            name = f"benign-boot-{checkpoint['release']}.txt"
            (DATA / "oops" / name).write_bytes(b"# expect: count: 0\n" + log.read_bytes())


def _keep(lab: Lab, name: str, series: str, folder: Path, result: dict[str, Any]) -> None:
    """Write one log, unless the console alone does not show the outcome, as with a silent hang."""
    # The kernel's answer to sysrq is not part of the failure, and ten times as long.
    console = _ASKED.split((folder / "console.log").read_bytes(), maxsplit=1)[0]
    crasher = lab.folder.samefile(crashers.CRASHERS.folder)
    source = lab.modules[name].source.name
    built = lab_files(lab).guest(result["guest"]).builds / name
    images = {str(path): path.read_bytes() for path in built.rglob("*.ko")}
    own = [path.stem.replace("-", "_") for path in map(Path, images)] or [name]
    options = {"own": ", ".join(own), "booted": "yes"}
    crashes = find_crashes(parse_log(console).records, frozenset(own), booted=True)
    sections, stored = _sections(folder), None
    if crasher and images and crashes:
        (image,) = images.values()
        bare, root = crashes, PurePosixPath(folder_in_guest(name))
        crashes = [located(crash, images, root, sections) for crash in bare]
        stored = _equal_module(f"{source}-{series}", bare, crashes, sections)
        options["ko"] = stored or f"{source}-{series}-{_code(image)}.ko"
        if crashes != [located(crash, images, root) for crash in bare]:
            options["at"] = " ".join(f"{section}={at:#x}" for section, at in sections[own[0]].items())
    if not (0 < len(console) <= _LARGEST and _findings_match(result, crashes, crasher)):
        print(f"left out: {name} on {series}")
        return
    if "ko" in options and not stored:
        target = crashers.BUILT / options["ko"]
        subprocess.run(["objcopy", "--compress-debug-sections=zlib", *images, target], check=True)
    header = "".join(f"# expect: {line}\n" for line in _header(options, crashes))
    words = ["guest", series, *([source] if crasher else []), name]
    (DATA / "oops" / f"{'-'.join(words)}.txt").write_bytes(header.encode() + console)


def _equal_module(stem: str, bare: list[Crash], crashes: list[Crash], sections: Sections) -> str | None:
    """Return the stored module with the same findings: only other parts of its source changed."""
    for path in sorted(crashers.BUILT.glob(f"{stem}-*.ko")):
        images = {f"{stem.split('-', maxsplit=1)[0]}.ko": path.read_bytes()}
        if [_gist(located(crash, images, None, sections)) for crash in bare] == [_gist(crash) for crash in crashes]:
            return path.name
    return None


def _gist(crash: Crash) -> tuple[object, ...]:
    return crash.title, crash.function, crash.file, crash.line


def _forget_unused() -> None:
    logs = b"".join(log.read_bytes()[:1000] for log in (DATA / "oops").glob("guest-*.txt"))
    for path in crashers.BUILT.glob("*.ko"):
        if path.name.encode() not in logs:
            path.unlink()


def _sections(folder: Path) -> dict[str, dict[str, int]]:
    """Return where the run's modules had their sections."""
    crashes: dict[str, dict[str, int]] = {}
    for line in (folder / "sections.txt").read_text().splitlines() if (folder / "sections.txt").exists() else ():
        module, name, at = line.split()
        crashes.setdefault(module, {})[name] = int(at, 16)
    return crashes


def _code(image: bytes) -> str:
    """Return the same digest for all builds of one source, whatever folder their debug information names."""
    elf = read_object(image, "module")
    code = b"".join(elf.content(section) for section in elf.sections if section.executable)
    return hashlib.sha256(code).hexdigest()[:8]


def _findings_match(result: dict[str, Any], crashes: list[Crash], crasher: bool) -> bool:
    """Check the findings in the console against the module's author, or for an example, against the run."""
    if not crasher:
        return [(c.title, c.function) for c in crashes] == [(c["title"], c["function"]) for c in result["crashes"]]
    try:
        crashers.CRASHERS.check({**result, "ok": True, "crashes": [crash_to_json(crash) for crash in crashes]})
    except AssertionError:
        return False
    return bool(crashes) == bool(result["crashes"])


def _header(options: dict[str, str], crashes: list[Crash]) -> list[str]:
    lines = [f"{key}: {value}" for key, value in options.items()] + [f"count: {len(crashes)}"]
    keys = ("kind", "title", "function", "module", *(("file", "line") if "ko" in options else ()))
    for number, crash in enumerate(crashes):
        lines += ["and:"] if number else []
        lines += [f"{key}: {getattr(crash, key) or 'none'}" for key in keys]
        lines.append(f"class: {crash.class_}")
    return lines


if __name__ == "__main__":
    for word in sys.argv[1:]:
        boots() if word == "--boots" else main(load_lab(Path(word)))
