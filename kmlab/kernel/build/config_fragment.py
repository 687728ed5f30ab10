"""Read fragments of a kernel's .config, find options that were dropped, and change a built tree's options for modules.

`make allnoconfig` and `make olddefconfig` drop an option without a message if an option that it depends on is off
(Documentation/kbuild/kconfig.rst).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kmlab.kernel.build.build_tree import parse_config

_OFF = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")
_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.+)")


def parse_fragment(text: str) -> dict[str, str]:
    """Return the value of each option in a fragment, by its name without CONFIG_. Options that are off have `n`."""
    options = {}
    for line in text.splitlines():
        if match := _OFF.fullmatch(line.strip()):
            options[match[1]] = "n"
        elif match := _SET.fullmatch(line.strip()):
            options[match[1]] = match[2]
    return options


def merge_fragments(fragments: Iterable[str]) -> dict[str, str]:
    """Return the options of several fragments; a later one replaces an earlier one."""
    merged: dict[str, str] = {}
    for text in fragments:
        merged |= parse_fragment(text)
    return merged


def format_fragment(options: dict[str, str]) -> str:
    """Return options as the text of a .config."""
    lines = (f"# CONFIG_{k} is not set" if v == "n" else f"CONFIG_{k}={v}" for k, v in options.items())
    return "".join(f"{line}\n" for line in lines)


def find_dropped(requested: dict[str, str], config: str) -> list[str]:
    """Return the requested options that the written .config does not have, as `CONFIG_NAME=VALUE`, sorted.

    An option that this kernel no longer has is not missed if it must be off.
    """
    got = parse_config(config)
    return sorted(f"CONFIG_{k}={v}" for k, v in requested.items() if got.get(k, "n") != v)


def change_auto_conf(auto_conf: str, options: dict[str, str]) -> str:
    """Return the text of include/config/auto.conf with some options changed. It contains only options that are on."""
    kept = [line for line in auto_conf.splitlines() if line.partition("=")[0].removeprefix("CONFIG_") not in options]
    added = [f"CONFIG_{name}={value}" for name, value in options.items() if value != "n"]
    return "".join(f"{line}\n" for line in [*kept, *added])
