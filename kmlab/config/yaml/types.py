"""Define the checked scalars of lab.yaml, images/ and guests/: which text is allowed, and the error for other text.

A type checker sees the plain type; `schema` sees its `ScalarParser`.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Annotated

from kmlab.common.errors import ConfigError
from kmlab.config.yaml.schema import ScalarParser


def word(expression: str, must: str, hint: str | None = None) -> ScalarParser:
    """Return a parser for text that matches the whole `expression`. `must` completes "must be …"."""
    allowed = re.compile(expression, re.ASCII)

    def parse(text: str) -> str:
        if not allowed.fullmatch(text):
            raise ConfigError(f"must be {must}", hint)
        return text

    return ScalarParser(parse, matching(expression))


def matching(expression: str, *types: str) -> tuple[tuple[str, object], ...]:
    """Return the JSON Schema keywords of such text. Numbers and booleans of YAML are text here, too."""
    return (("type", types or ("string", "number", "boolean")), ("pattern", f"^(?:{expression})$"))


def whole(low: int, high: int) -> ScalarParser:
    """Return a parser for a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ConfigError(f"must be a whole number from {low} to {high}")
        return int(text)

    return ScalarParser(parse, (("type", "integer"), ("minimum", low), ("maximum", high)))


def parse_kernel(text: str) -> str:
    """Check a kernel's name from the command line by the rules of `kernel:` in lab.yaml."""
    return str(_KERNEL.parse(text))


def size(low: str, high: str) -> ScalarParser:
    """Return a parser for a size in bytes. `low` and `high` are texts such as 256M."""

    def parse(text: str) -> int:
        count = parse_size(text)
        if not parse_size(low) <= count <= parse_size(high):
            raise ConfigError(f"must be from {low} to {high}")
        return count

    return ScalarParser(parse, (*matching(_SIZE.pattern, "string"), ("description", f"From {low} to {high}.")))


def parse_size(text: str) -> int:
    """Return the bytes of a size: a number followed by K, M, G or T, each 1024 times the one before."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ConfigError("must be a size with its unit, such as 512M or 1G")
    return int(float(match[1]) * 1024 ** (" KMGT".index(match[2].upper())))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration: 30, 1.5, 500ms, 30s, 2m or 1h."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= _LONGEST:
        raise ConfigError("must be a time above zero and at most a week, such as 30, 30s or 2m")
    return seconds


def parse_forward(text: str) -> tuple[int, int]:
    """Return the host's port and the guest's port of `8080:80`; the host's is 0 for `80`."""
    match = re.fullmatch("(?:([0-9]{1,5}):)?([0-9]{1,5})", text, re.ASCII)
    host, guest = (int(match[1] or 0), int(match[2])) if match else (0, 0)
    if not 0 < guest < 1 << 16 or not 0 <= host < 1 << 16 or (match and match[1] and not host):
        raise ConfigError("must be a port of the guest, or HOST:GUEST", "such as 8080:80, with ports up to 65535")
    return host, guest


def parse_pattern(text: str) -> str:
    """Check a pattern for `matches`: not empty; between slashes, a valid regular expression."""
    if not text.strip():
        raise ConfigError("must not be empty: an empty pattern matches every line")
    try:
        re.compile(_expression(text) or "")
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"must be a valid regular expression between the slashes ({error})") from error
    return text


def matches(pattern: str, line: str) -> bool:
    """Return whether a line of the log matches a pattern of lab.yaml.

    A pattern is text that the line contains or, between slashes, a regular expression that matches a part of it.
    """
    expression = _expression(pattern)
    return re.search(expression, line) is not None if expression is not None else pattern in line


def _expression(pattern: str) -> str | None:
    return pattern[1:-1] if len(pattern) > 2 and pattern[0] == pattern[-1] == "/" else None


def _parse_digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text, re.ASCII):
        raise ConfigError("must be the 64 hex digits that sha256sum prints")
    return text.lower()


def _parse_any_digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}|[0-9a-fA-F]{128}", text, re.ASCII):
        raise ConfigError("must be the hex digits that sha256sum or sha512sum prints")
    return text.lower()


def parse_time(text: str) -> int:
    """Return the seconds since 1970 of a time in UTC: 2026-11-24T20:15:00Z."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp())
    except ValueError:
        raise ConfigError("must be a time in UTC, such as 2026-11-24T20:15:00Z") from None


def parse_version(text: str) -> tuple[int, int]:
    """Parse a version of Linux: 6.4 is (6, 4)."""
    match = _VERSION.fullmatch(text)
    if not match:
        raise ConfigError("must be a version of Linux, such as 6.4")
    return int(match[1]), int(match[2])


# JSON Schema uses these expressions too, so only the syntax that JavaScript also has is allowed.
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([KMGTkmgt])(?:i?B)?", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|)", re.ASCII)
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)
_TIME = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 7 * 24 * 3600.0

Size = Annotated[int, ScalarParser(parse_size, matching(_SIZE.pattern, "string"))]
Duration = Annotated[
    float, ScalarParser(parse_duration, (*matching(_DURATION.pattern, "string", "number"), ("exclusiveMinimum", 0)))
]
Time = Annotated[int, ScalarParser(parse_time, matching(_TIME))]
"""Seconds since 1970."""
Version = Annotated[tuple[int, int], ScalarParser(parse_version, matching(_VERSION.pattern))]
Pattern = Annotated[str, ScalarParser(parse_pattern, matching(r"[\s\S]*\S[\s\S]*"))]
Digest = Annotated[str, ScalarParser(_parse_digest, matching("[0-9a-fA-F]{64}"))]
"""SHA-256, in lower case."""
AnyDigest = Annotated[str, ScalarParser(_parse_any_digest, matching("[0-9a-fA-F]{64}|[0-9a-fA-F]{128}"))]
"""SHA-256 or SHA-512, distinguished by their length; in lower case."""
Name = Annotated[
    str,
    word(
        "[a-z0-9][a-z0-9-]{0,30}",
        "lower-case letters, digits and dashes, at most 31 characters, beginning with a letter or digit",
        "such as 'debian' or 'noble-2'",
    ),
]
"""The name of a lab or a guest. It becomes part of paths, sockets and libvirt's domain names."""
ImageName = Annotated[str, word("[a-z0-9][a-z0-9.-]{0,62}", "the name of an image, such as debian-12 or ubuntu-24.04")]
ModuleName = Annotated[
    str, word(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", "letters, digits, `_`, `.`, `+` and `-`, at most 64")
]
MakeTarget = Annotated[
    str, word(r"[A-Za-z0-9_.%+/][A-Za-z0-9_.%+/-]{0,99}", "a target of make, such as modules or all")
]
Identifier = Annotated[str, word("[A-Za-z_][A-Za-z0-9_]{0,63}", "a C identifier")]
_KERNEL_NAME = r"[A-Za-z0-9][A-Za-z0-9.+~:*?_-]{0,99}"
_KERNEL = word(
    _KERNEL_NAME,
    "a kernel: default, exact, a version, a package, a flavour or a suite",
    "your own build is `kernel: {local: DIR}`",
)
ConfigOption = Annotated[
    str,
    word(
        "from-distribution|(CONFIG_)?[A-Z0-9][A-Za-z0-9_]{0,99}=(y|m|n|-?[0-9]{1,18}|0x[0-9A-Fa-f]{1,16})",
        "an option of a kernel's configuration, such as CONFIG_USB=y, or from-distribution",
    ),
]
KernelName = Annotated[str, _KERNEL]
Column = Annotated[
    str,
    word(
        rf"([a-z0-9][a-z0-9-]{{0,30}}@)?{_KERNEL_NAME}",
        "a kernel, a guest, or both as GUEST@KERNEL",
        "such as 6.1, backports, debian or debian@6.12",
    ),
]
"""A column of a matrix."""
Package = Annotated[
    str,
    word(r"[a-z0-9][a-z0-9+.-]{1,99}(:[a-z0-9-]+)?([=/][A-Za-z0-9.+~:-]+)?", "the name of an apt package"),
]
Sysctl = Annotated[str, word(r"[a-z0-9_-]+([./][A-Za-z0-9_-]+)+", "the name of a sysctl, such as kernel.panic")]
ModprobeLine = Annotated[
    str,
    word(
        "[A-Za-z0-9_][A-Za-z0-9_-]{0,63}( +[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(=[A-Za-z0-9_.,:/+@%-]{0,200})?){0,20}",
        "a module of the kernel with its options, as on modprobe's command line",
        "such as i2c-stub chip_addr=0x50",
    ),
]
OneLine = Annotated[str, word(r"[^\x00-\x1f\x7f]{1,1000}", "one line of text")]
Command = Annotated[str, word(r"[\s\S]*\S[\s\S]*", "a command")]
GuestFiles = Annotated[
    str,
    word(
        r"[^\x00-\x1f\x7f]{1,500}",
        "a path in the guest, with * ? and [ ] as in a shell",
        "such as results/*.txt or /sys/kernel/debug/mine/stats",
    ),
]
_PART = "[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}"
DeviceFile = Annotated[str, word(f"/dev(/{_PART}){{1,4}}", "a file of /dev in the guest", "such as /dev/ring")]
HeaderFile = Annotated[
    str,
    word(rf"(\.\./){{0,9}}({_PART}/){{0,9}}{_PART}\.h", "a header, as seen from the module's folder", "such as ring.h"),
]
Forward = Annotated[
    tuple[int, int],
    ScalarParser(parse_forward, matching("([0-9]{1,5}:)?[0-9]{1,5}")),
]
"""A port of the host, 0 for any free one, and the guest's port."""
# The boot loader's configuration is shell code, and the kernel splits at spaces and knows only double quotes.
CommandLine = Annotated[
    str,
    word(
        r"[ !#%&(-\[\]-_a-~]{0,1000}",
        "one line of plain ASCII without quotes, backslashes, `$` and backticks",
    ),
]
Url = Annotated[str, word(r"""https?://[^\s\x00-\x1f\x7f"'\\<>`]+""", "an http or https URL")]
HttpsUrl = Annotated[str, word(r"https://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?", "an https URL")]
FileName = Annotated[
    str, word(r"[A-Za-z0-9][A-Za-z0-9._+-]*(\{serial\}[A-Za-z0-9._+-]*)?", "the name of a file, without folders")
]
"""The name of a publisher's file. `{serial}` is replaced by the release's serial."""
FolderName = Annotated[
    str,
    word(r"[A-Za-z0-9{][A-Za-z0-9._+{}-]*(/[A-Za-z0-9{][A-Za-z0-9._+{}-]*)*", "a folder on the server, such as a/b"),
]
Serial = Annotated[str, word("[0-9][0-9A-Za-z.-]{0,40}", "a release's serial, such as 20260423 or 20260423-2447")]
Fingerprint = Annotated[str, word("[0-9A-F]{40}", "the 40 hex digits of a key's fingerprint, without spaces")]
LibvirtUri = Annotated[
    str,
    word(
        r"embedded|[a-z][a-z0-9+.-]*://[^\s\x00-\x1f\x7f]*",
        "embedded or a libvirt URI",
        "such as qemu:///session",
    ),
]
