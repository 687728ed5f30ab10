"""Look up the current pins of published images: `make images`, or `python tools/pins.py FOLDER`.

For each image, take the newest dated release, if its publisher signed it as the catalogue requires, and no release
older than the pinned one. Only the `pin:` lines in images/*.yaml change: check the difference before you commit.
"""

from __future__ import annotations

import re
import sys
from datetime import datetime, timezone
from pathlib import Path

from kmlab.common.errors import KmlabError
from kmlab.common.events import Deadline
from kmlab.config import catalog
from kmlab.host.net import download
from kmlab.provision.images.trust import digest_in, read_signed
from kmlab.provision.plan.plan import find_image_source, mirror_of
from kmlab.provision.plan.source import PublishedImageSource

LISTING_LIMIT = 8 << 20
PATIENCE = 300.0


def main(home: Path) -> int:
    """Refresh images/ in `home`; return the number of images that could not be looked up."""
    failed = 0
    for path in sorted((home / "images").glob("*.yaml")):
        image = catalog.load_image(path.stem, home)
        for arch in image.architectures if image.publisher else ():
            source = find_image_source(image, home, mirror=mirror_of(None), arch=arch)
            assert isinstance(source, PublishedImageSource)
            try:
                pin = newest(source)
                write(path, arch, pin)
                print(f"{image.name} {arch}: release {pin.serial}, {pin.digest[:16]}…")
            except KmlabError as error:
                failed += 1
                print(f"{image.name} {arch}: {error.message}", file=sys.stderr)
    return failed


def newest(source: PublishedImageSource) -> catalog.Pin:
    """Return the pin of a publisher's newest release; the present one if there is no newer."""
    deadline = Deadline(PATIENCE)
    old = source.pin
    serials = listed(source, deadline)
    if old is not None and old.serial is not None:
        serials = [serial for serial in serials if order(serial) > order(old.serial)]
    if not serials:
        if old is not None:
            return old
        raise KmlabError(f"no release is listed where {source.dated('…')[0]} lies")
    serial = max(serials, key=order)
    folder, name = source.dated(serial)
    if source.key is not None:
        checksums = read_signed(source, source.key, folder, name, deadline)
        if (
            old is not None
            and old.signed is not None
            and checksums.signed is not None
            and checksums.signed < old.signed
        ):
            raise KmlabError(f"{folder}: signed before the release that is pinned, though it is called newer")
        return catalog.Pin(serial=serial, digest=checksums.digest, signed=checksums.signed)
    sums = download.read(f"{folder}/{source.publisher.sums}", deadline, limit=LISTING_LIMIT)
    return catalog.Pin(serial=serial, digest=digest_in(sums, name, folder))


def listed(source: PublishedImageSource, deadline: Deadline) -> list[str]:
    """Return the serials of a publisher's dated folders, from the web server's page of the folder above."""
    above, _, last = source.publisher.dated.rpartition("/")
    page = download.read(f"{source.server}/{above}/", deadline, limit=LISTING_LIMIT).decode("utf-8", "replace")
    before, _, after = last.partition("{serial}")
    link = re.compile(f'href="(?:\\./)?{re.escape(before)}([0-9][0-9A-Za-z.-]{{0,40}}?){re.escape(after)}/"')
    return sorted(set(link.findall(page)))


def order(serial: str) -> tuple[int, ...]:
    """Return a sort key for serials, dates with further numbers: 20260423 < 20260423.1, 20260423-99 < 20260423-100."""
    return tuple(int(number) for number in re.findall("[0-9]+", serial))


def write(path: Path, arch: str, pin: catalog.Pin) -> None:
    """Put a pin into an entry; everything else stays as it is, its comments too."""
    signed = ""
    if pin.signed is not None:
        signed = f", signed: {datetime.fromtimestamp(pin.signed, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    text = f'{{serial: "{pin.serial}", digest: {pin.digest}{signed}}}'
    lines, within = path.read_text(encoding="utf-8").splitlines(keepends=True), False
    for number, line in enumerate(lines):
        if re.match(r" {2}\S", line):
            within = line.strip() == f"{arch}:"
        elif within and (found := re.match(r"(\s+pin:\s*)(null|\{[^}]*\})", line)):
            lines[number] = f"{found[1]}{text}{line[found.end() :]}"
            path.write_text("".join(lines), encoding="utf-8")
            return
    raise KmlabError(f"{path}: no line `pin: null` for {arch}")


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])) else 0)
