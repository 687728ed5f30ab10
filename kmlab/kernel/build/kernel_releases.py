"""Which kernels an archive has, and which of them was meant: `6.12`, `rt`, `backports`, `backports:rt`, a package.

A kernel counts only with its headers: archives keep many images longer than their headers. Versions are ordered as
dpkg orders them (deb-version(7)), index stanzas are those of a Packages file (deb-src-control(5)).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from itertools import zip_longest
from typing import NamedTuple

_RELEASE = re.compile(
    r"(?P<version>\d+\.\d+(\.\d+)?([~+][A-Za-z0-9.~+]+)?(-rc\d+)?(-\d[0-9.]*)?)-(?P<flavour>[a-z0-9_-]+)"
)
"""6.1.0-56-cloud-amd64, 6.12.95+deb12-rt-amd64, 6.8.0-45-generic: the version is all before the flavour."""
_FIELDS = ("Package", "Version", "Depends")
_ORDINARY = ("generic", "amd64", "arm64")
"""The flavour that a distribution gives to most: Ubuntu's name for it, and Debian's."""


class Package(NamedTuple):
    """A package of an archive's index."""

    name: str
    version: str
    suite: str
    """By its codename: bookworm, bookworm-security."""
    depends: tuple[str, ...] = ()
    """Names alone, first alternatives alone."""


@dataclass(frozen=True, slots=True)
class Release:
    """A kernel with its headers."""

    name: str
    """As `uname -r` says it."""
    version: str
    """Of its packages."""
    suite: str
    packages: tuple[str, ...]
    """Image, headers, and linux-modules-extra where there is such a package."""

    @property
    def flavour(self) -> str:
        return split_release(self.name)[1]


class Unmatched(NamedTuple):
    """Why there is no such kernel, and which kernels exist."""

    message: str
    hint: str


def split_release(name: str) -> tuple[str, str]:
    """`6.1.0-56-cloud-amd64` as version and flavour; what has no such shape is all version."""
    found = _RELEASE.fullmatch(name)
    return (found["version"], found["flavour"]) if found else (name, "")


def parse_packages(text: str, suite: str) -> list[Package]:
    """Return the kernels' packages in an index: those whose names begin with `linux-`."""
    found = []
    for stanza in text.split("\n\n"):
        if not stanza.lstrip("\n").startswith("Package: linux-"):
            continue
        pairs = (line.partition(": ") for line in stanza.splitlines() if line[:1] not in (" ", "\t"))
        fields = {key: value for key, _, value in pairs if key in _FIELDS}
        depends = tuple(
            re.split(r"[\s|(:]", part.strip(), maxsplit=1)[0] for part in fields.get("Depends", "").split(",")
        )
        found.append(Package(fields["Package"], fields.get("Version", ""), suite, tuple(d for d in depends if d)))
    return found


def installed_release(status: str) -> str:
    """Return the newest kernel in a dpkg status file, as `uname -r` would say it; empty where none is installed."""
    there = "\n\n".join(part for part in status.split("\n\n") if "\nStatus: deinstall " not in part)
    images = [p for p in parse_packages(there, "") if _release_of(p)]
    newest = max(images, key=lambda p: version_key(p.version), default=None)
    return _release_of(newest) if newest else ""


def releases(packages: Sequence[Package]) -> list[Release]:
    """Every kernel that has its headers in the same suite, suite by suite, newest last."""
    there = {(p.name, p.version, p.suite) for p in packages}
    found = {}
    for image in packages:
        name = _release_of(image)
        headers, extra = (f"linux-{what}-{name}" for what in ("headers", "modules-extra"))
        if name and (headers, image.version, image.suite) in there:
            names = [n for n in (image.name, headers, extra) if (n, image.version, image.suite) in there]
            found[name, image.suite] = Release(name, image.version, image.suite, tuple(names))
    return sorted(found.values(), key=lambda r: (r.suite, version_key(r.version), r.name))


def choose(
    asked: str, packages: Sequence[Package], installed: str, further: Collection[str] = ()
) -> Release | Unmatched:
    """Return the newest kernel that `asked` fits: a package, or version, flavour and suite with `:` or `-` in between.

    Where no flavour is named, that of the kernel `installed` is meant, and with a flavour alone its series.
    Metapackages of the suites `further` count only where there are no others, as for apt.
    """
    there = releases(packages)
    if asked.startswith("linux-"):
        own = [p for p in packages if p.suite not in further]
        fitting = _by_package(asked, own, there) or _by_package(asked, packages, there)
    else:
        fitting = _by_words(asked, there, installed)
    if fitting:
        return max(fitting, key=lambda r: (version_key(r.version), r.suite))
    return _unmatched(asked, packages, there, installed)


def version_key(version: str) -> tuple[object, ...]:
    """Return a key that orders versions as dpkg does: epoch, then upstream version, then revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isdigit() else 0, _part_key(upstream), _part_key(revision))


def _compare(one: str, other: str) -> int:
    """Split into runs of non-digits and digits in turn; where one part has ended, it goes on as nothing and 0."""
    for pair in zip_longest(_runs(one), _runs(other), fillvalue=((0,), 0)):
        if pair[0] != pair[1]:
            return -1 if pair[0] < pair[1] else 1
    return 0


_part_key = cmp_to_key(_compare)


def _runs(part: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """`~` sorts before the end, letters before all other signs."""
    for text, number in re.findall(r"(\D*)(\d*)", part):
        signs = (-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text)
        yield (*signs, 0), int(number or 0)


def _release_of(package: Package) -> str:
    """Return the release whose image this package is; empty for metapackages, debug symbols and all others."""
    name = package.name.removeprefix("linux-image-")
    shaped = package.name.startswith("linux-image-") and _RELEASE.fullmatch(name)
    if not shaped or name.endswith(("-dbg", "-dbgsym", "-unsigned", "-template")):
        return ""
    return "" if any(d.startswith("linux-image-") for d in package.depends) else name


def _by_package(asked: str, packages: Sequence[Package], there: Sequence[Release]) -> list[Release]:
    """Return the kernels that the packages of that name, or pattern, are or depend on."""
    known: dict[str, list[Package]] = {}
    for package in packages:
        known.setdefault(package.name, []).append(package)
    wanted, seen = [name for name in known if fnmatch.fnmatchcase(name, asked)], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for package in known.get(name, ()):
            wanted += [d for d in package.depends if d.startswith("linux-")]
    return [release for release in there if not seen.isdisjoint(release.packages[:2])]


def _by_words(asked: str, there: Sequence[Release], installed: str) -> list[Release]:
    return next((found for words in _readings(asked) if (found := _fitting(words, there, installed))), [])


def _readings(asked: str) -> Iterable[tuple[str, ...]]:
    """Return the ways to take `asked` apart: as one word, at colons, and at one or two dashes."""
    yield (asked,)
    if ":" in asked:
        yield tuple(word for word in asked.split(":") if word)
    dashes = [place for place, sign in enumerate(asked) if sign == "-"]
    for one in dashes:
        yield (asked[:one], asked[one + 1 :])
    for one in dashes:
        for two in dashes[dashes.index(one) + 1 :]:
            yield (asked[:one], asked[one + 1 : two], asked[two + 1 :])


def _fitting(words: Sequence[str], there: Sequence[Release], installed: str) -> list[Release]:
    """Return the kernels that every word fits, a word being a version, a flavour or a suite."""
    found, named = list(there), set()
    for word in words:
        for what, fits in _WORDS:
            fitting = [r for r in found if fits(word, r)]
            if fitting:
                named.add(what)
                break
        found = fitting
    version, flavour = split_release(installed)
    if not named & {"flavour", "release"} and any(r.flavour == flavour for r in there):
        found = [r for r in found if r.flavour == flavour]
    series = [r for r in found if _series(r.name) == _series(version)]
    return series if named == {"flavour"} and series else found


def _is_flavour(word: str, flavour: str) -> bool:
    """`cloud` is cloud-amd64, `generic` also Debian's plain amd64."""
    short = re.sub("-?(amd64|arm64)$", "", flavour)
    return word in (flavour, short or flavour) or (word == "generic" and flavour in _ORDINARY)


def _is_version(word: str, release: Release) -> bool:
    """`6.1` is 6.1.0-56 and not 6.12; patterns and the packages' own versions fit too."""
    version = split_release(release.name)[0]
    if release.version == word or fnmatch.fnmatchcase(version, word):
        return True
    return word[:1].isdigit() and version.startswith(word) and not version[len(word)].isalnum()


def _series(name: str) -> list[str]:
    return name.split(".")[:2]


_WORDS: tuple[tuple[str, Callable[[str, Release], bool]], ...] = (
    ("release", lambda word, release: word == release.name),
    ("flavour", lambda word, release: _is_flavour(word, release.flavour)),
    ("suite", lambda word, release: word == release.suite or release.suite.endswith(f"-{word}")),
    ("version", _is_version),
    ("release", lambda word, release: "*" in word and fnmatch.fnmatchcase(release.name, word)),
)
"""What a word may be, in the order in which it is tried."""


def _unmatched(asked: str, packages: Sequence[Package], there: Sequence[Release], installed: str) -> Unmatched:
    orphans = [Release(n, p.version, p.suite, (p.name,)) for p in packages if (n := _release_of(p))]
    fitting = _by_words(asked, orphans, installed) or [r for r in orphans if r.packages[0] == asked]
    if fitting:
        newest = max(fitting, key=lambda r: version_key(r.version))
        message = f"kernel '{asked}': the archive has {newest.packages[0]} and not its headers any more"
    else:
        message = f"no kernel matches '{asked}'"
    ours = [r for r in there if r.flavour == split_release(installed)[1]] or list(there)
    if not ours:
        return Unmatched(message, "the image's archive has no kernel with headers")
    names = list(dict.fromkeys(split_release(r.name)[0] for r in sorted(ours, key=lambda r: version_key(r.version))))
    flavours = sorted({r.flavour for r in there})
    suites = sorted({r.suite for r in there})
    return Unmatched(
        message,
        f"there are {', '.join(reversed(names))}; flavours {', '.join(flavours)}; suites {', '.join(suites)}",
    )


_SOURCE = re.compile(r"linux-source-(?P<series>\d+\.\d+(\.\d+)*)")


class SourcePackage(NamedTuple):
    """A package with the sources of one series of kernels."""

    name: str
    version: str
    suite: str
    series: str
    """6.1, or 6.8.0."""


def choose_source(words: Sequence[str], packages: Sequence[Package], installed: str) -> SourcePackage | Unmatched:
    """Return the newest source package that fits all words. A word is a version or a suite.

    Without a version or a suite, the series of the kernel `installed` (`uname -r`) is meant.
    """
    sources = [
        SourcePackage(package.name, package.version, package.suite, match["series"])
        for package in packages
        if (match := _SOURCE.fullmatch(package.name))
    ]
    asked = list(words) or [_series_of(split_release(installed)[0])]
    fitting = [source for source in sources if all(_source_fits(word, source) for word in asked)]
    if fitting:
        return max(fitting, key=lambda source: version_key(source.version))
    names = ", ".join(dict.fromkeys(f"{source.series} ({source.suite})" for source in sources))
    return Unmatched(
        f"the archive has no kernel sources (linux-source-…) for '{':'.join(asked)}'",
        f"it has the sources of {names}" if names else "the image's archive has no package linux-source-…",
    )


def _source_fits(word: str, source: SourcePackage) -> bool:
    if word == source.suite or source.suite.endswith(f"-{word}"):
        return True
    # 6.1 is linux-source-6.1; 6.8 is linux-source-6.8.0; 6.1.192 is the version of the package.
    upstream = source.version.partition("-")[0]
    return any(text == word or text.startswith(f"{word}.") for text in (source.series, upstream))


def _series_of(version: str) -> str:
    return ".".join(re.findall(r"\d+", version)[:2])
