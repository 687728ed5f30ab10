"""Makes tests/data/oops/guest-*.txt of the runs of our own guests.

    kmlab test --all --lab tests/data/crashers/lab.yaml; kmlab test       (an hour where guests are emulated)
    .venv/bin/python tools/corpus.py lab.yaml tests/data/crashers/lab.yaml

Takes the newest run of each module on each kernel that did what lab.yaml expects of it, so that what a log's header
claims (outcome, guilty function, the line that is marked in the source) was said by the module's author before the log
was there. With a crasher's log comes the .ko that its lines are found with. tests/test_oops.py has the form.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kmlab.kernel.elf import read_object
from kmlab.kernel.klog import parse_log
from kmlab.kernel.locating import located
from kmlab.kernel.oops import Crash, find_crashes
from kmlab.lab import Lab, load_lab
from kmlab.module import workshop
from kmlab.provision import lab_files
from kmlab.result import crash_to_json
from tests import crashers

DATA = Path(__file__).parents[1] / "tests" / "data"
_LARGEST = 100_000


def main(lab: Lab) -> None:
    newest: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    for folder in sorted(lab_files(lab).runs.iterdir()):
        record = folder / "result.json"
        if record.exists():
            (result,) = json.loads(record.read_text())["results"]
            newest[result["module"], ".".join(str(result["kernel"]).split(".")[:2])] = (folder, result)
    for (name, series), (folder, result) in sorted(newest.items()):
        if result["outcome"] in lab.modules[result["module"]].expect.outcome and result["outcome"] != "build-failed":
            _keep(lab, name, series, (folder / "console.log").read_bytes(), result)


def _keep(lab: Lab, name: str, series: str, console: bytes, result: dict[str, Any]) -> None:
    """Write one log, unless the console alone does not tell what the run came to, as of a hang nobody spoke of."""
    crasher = lab.folder.samefile(crashers.FOLDER)
    source = lab.modules[name].source.name
    built = lab_files(lab).guest(result["guest"]).builds / name
    images = {str(path): path.read_bytes() for path in built.rglob("*.ko")}
    own = [path.stem.replace("-", "_") for path in map(Path, images)] or [name]
    options = {"own": ", ".join(own), "booted": "yes"}
    found = find_crashes(parse_log(console).records, frozenset(own), booted=True)
    if crasher and images:
        (image,) = images.values()
        options["ko"] = f"{source}-{series}-{_code(image)}.ko"
        found = [located(crash, images, PurePosixPath(workshop(name))) for crash in found]
    if not (0 < len(console) <= _LARGEST and _told(result, found, crasher)):
        print(f"left out: {name} on {series}")
        return
    if "ko" in options:
        target = crashers.BUILT / options["ko"]
        subprocess.run(["objcopy", "--compress-debug-sections=zlib", *images, target], check=True)
    header = "".join(f"# expect: {line}\n" for line in _header(options, found))
    words = ["guest", series, *([source] if crasher else []), name]
    (DATA / "oops" / f"{'-'.join(words)}.txt").write_bytes(header.encode() + console)


def _code(image: bytes) -> str:
    """The same for all builds of one source, which only differ in the folder that their debug information names."""
    elf = read_object(image, "module")
    code = b"".join(elf.content(section) for section in elf.sections if section.executable)
    return hashlib.sha256(code).hexdigest()[:8]


def _told(result: dict[str, Any], found: list[Crash], crasher: bool) -> bool:
    """Whether what is found in the console is what the module's author said, or, of an example, what the run found."""
    if not crasher:
        return [(c.title, c.function) for c in found] == [(c["title"], c["function"]) for c in result["crashes"]]
    try:
        crashers.check({**result, "ok": True, "crashes": [crash_to_json(crash) for crash in found]})
    except AssertionError:
        return False
    return bool(found) == bool(result["crashes"])


def _header(options: dict[str, str], found: list[Crash]) -> list[str]:
    lines = [f"{key}: {value}" for key, value in options.items()] + [f"count: {len(found)}"]
    keys = ("kind", "title", "function", "module", *(("file", "line") if "ko" in options else ()))
    for number, crash in enumerate(found):
        lines += ["and:"] if number else []
        lines += [f"{key}: {getattr(crash, key) or 'none'}" for key in keys]
        lines.append(f"class: {crash.class_}")
    return lines


if __name__ == "__main__":
    for file in sys.argv[1:]:
        main(load_lab(Path(file)))
