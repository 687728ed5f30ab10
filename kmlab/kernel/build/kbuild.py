"""Find out what a module's folder contains and how to build it.

Follows the kernel's documentation, kbuild/modules and kbuild/makefiles.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["kbuild", "wrapper", "none"]
"""`kbuild`: has obj-m of its own; `wrapper`: only its own make knows what to do; `none`: neither."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What the make files at the top of a module's folder say."""

    kind: Kind
    file: str | None
    """The one that kbuild would read: Kbuild before Makefile."""
    modules: tuple[str, ...] = ()
    """The modules that obj-m names, as far as they are written out."""
    subdirs: tuple[str, ...] = ()
    """The folders beneath that it descends into."""
    configs: tuple[str, ...] = ()
    """The CONFIG_ options that something is built only with."""
    has_makefile: bool = False
    """Whether plain `make` has something to read."""
    extra_cflags: bool = False
    """Whether it sets EXTRA_CFLAGS, which kbuild passes over since Linux 6.15."""
    old_subdirs: bool = False
    """Whether it calls the kernel's make with SUBDIRS=, which means nothing since Linux 5.3."""
    sources: frozenset[str] = frozenset()
    """The names of all files in it and beneath."""
    below: tuple[str, ...] = ()
    """Folders beneath that have obj-m, whether or not the top descends into them."""
    includes_out: tuple[str, ...] = ()
    """Folders for headers that its flags name and that lie outside of it: they do not come along."""
    links_out: tuple[tuple[str, str], ...] = ()
    """Links that lead out of the folder, and where to: their targets do not come along."""
    serial: bool = False
    """Whether its default target needs its parts one after the other, as `all: clean modules install`."""
    above: int = 0
    """How many folders above it come along, too."""
    not_sent: str | None = None
    """What it needs from outside and does not get, and why: a part of a sentence."""


@dataclass(frozen=True, slots=True)
class BuildCommand:
    """One way to build, to be run in `folder`."""

    how: str
    """For people: which way this is."""
    argv: tuple[str, ...]
    folder: PurePosixPath
    environment: tuple[tuple[str, str], ...]
    """To be set beside what is there. PWD, because Makefiles rely on it and only a shell's cd keeps it
    right.
    """


MAKEFILES = ("GNUmakefile", "makefile", "Makefile")
"""What make reads, in its own order."""


def inspect_folder(files: Mapping[str, str]) -> Folder:
    """Return what the make files in `files` (name to text; others are passed over) say about a folder.

    A Makefile that only mentions obj-m inside a command, as in `$(MAKE) -C … obj-m=x.o`, is a wrapper.
    """
    own = next((name for name in MAKEFILES if name in files), None)
    # scripts/Makefile.build reads Kbuild, or else Makefile; the other two spellings are only for plain make.
    file = next((name for name in ("Kbuild", "Makefile") if name in files), None)
    if file is None and own is None:
        return Folder("none", None)
    text = _joined("\n".join(files[name] for name in dict.fromkeys((file, own)) if name))
    objects = list(_OBJECTS.finditer(_joined(files[file]))) if file else []
    words = [word for found in objects for word in found["value"].split("#")[0].split()]
    calls_kernel = re.search(r"\bM=|\bSUBDIRS=|\bobj-m=|/build\b|\bmodules\b", text)
    kind: Kind = "kbuild" if objects else "wrapper" if own and (calls_kernel or _TARGET.search(text)) else "none"
    return Folder(
        kind=kind,
        file=file,
        modules=tuple(dict.fromkeys(_module_name(word) for word in words if re.fullmatch(r"[\w./-]+\.o", word))),
        subdirs=tuple(dict.fromkeys(word.rstrip("/") for word in words if re.fullmatch(r"[\w./-]+/", word))),
        configs=tuple(dict.fromkeys(config for found in objects if (config := found["config"]))),
        has_makefile=own is not None,
        extra_cflags=re.search(r"^[ \t]*(?:override[ \t]+)?EXTRA_CFLAGS\b", text, re.MULTILINE) is not None,
        includes_out=tuple(dict.fromkeys(found[1] for found in _INCLUDE.finditer(text) if _leads_out(found[1]))),
        old_subdirs="SUBDIRS=" in text and not re.search(r"\bM=", text),
        serial=is_serial(_joined(files[own])) if own else False,
    )


def is_serial(makefile: str) -> bool:
    """Return whether the first target's parts step on one another when make starts them at once."""
    first = next((rule for rule in _RULE.finditer(makefile) if not rule["targets"].lstrip().startswith(".")), None)
    parts = first["parts"].split("#")[0].split(";")[0].split() if first else []
    return len(parts) > 1 and any(_ORDERED.search(part) for part in parts)


def make_commands(
    kind: Kind,
    folder: PurePosixPath,
    release: str,
    jobs: int,
    variables: Mapping[str, str] | None = None,
    target: str | None = None,
    serial: bool = False,
) -> list[BuildCommand]:
    """Return the ways to build `folder` for the kernel `release`, to be tried in this order; empty for kind `none`.

    `variables` and `target` are the user's. `serial`: the folder's own make runs one job at a time.

    KERNELRELEASE is not among the variables: Makefiles take its presence for being read by kbuild, and then
    have no targets of their own. Nor may it be in the environment.
    """
    build = f"/lib/modules/{release}/build"
    environment = (("PWD", str(folder)),)
    given = [f"{name}={value}" for name, value in (variables or {}).items()]
    by_kbuild = BuildCommand(
        "kbuild",
        ("make", "-C", build, f"M={folder}", *given, target or "modules", f"-j{jobs}"),
        folder,
        environment,
    )
    names = [f"{name}={build}" for name in ("KDIR", "KERNELDIR", "KERNEL_DIR", "KERNEL_SRC")]
    names += [f"{name}={release}" for name in ("KVER", "KVERSION")]
    goal = (target,) if target else ()
    by_itself = BuildCommand(
        "its own make", ("make", f"-j{1 if serial else jobs}", *names, *given, *goal), folder, environment
    )
    ways: dict[Kind, list[BuildCommand]] = {
        # Only the author's own Makefile knows a target of another name.
        "kbuild": [by_kbuild, by_itself] if target in (None, "modules") else [by_itself, by_kbuild],
        "wrapper": [by_itself],
        "none": [],
    }
    return ways[kind]


def quiet_environment() -> tuple[str, ...]:
    """Return the variables that must not reach make from whoever calls it."""
    return (
        "KERNELRELEASE",
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "KBUILD_OUTPUT",
        "O",
        "M",
    )


_OBJECTS = re.compile(
    r"^[ \t]*(?:export[ \t]+|override[ \t]+)?obj-(?:m|y|\$[({](?P<config>CONFIG_\w+)[)}]|\$[({]\w+[)}])"
    r"[ \t]*(?:[:+?]{0,2}=)(?P<value>.*)$",
    re.MULTILINE,
)
_INCLUDE = re.compile(r"(?<!\S)-I\s{0,4}([^\s#]{1,200})")
_VARIABLES = re.compile(r"^(?:\$[({]\w+[)}]/?)+")


def _leads_out(path: str) -> bool:
    """Tell whether a folder for headers lies outside of the module's, which the variables before it stand for."""
    below = _VARIABLES.sub("", path)
    if below.startswith("/") and below == path:
        return not path.startswith(("/lib/", "/usr/"))
    return posixpath.normpath(f"x/{below}").split("/")[0] != "x" or posixpath.normpath(below).startswith("..")


_RULE = re.compile(r"^(?P<targets>[^\s:#=][^:#=\n]*):(?![=:])(?P<parts>[^=\n]*)$", re.MULTILINE)
_ORDERED = re.compile(
    r"clean|^(?:un)?install|_install$|^(?:re|un|in)?(?:load|insmod|rmmod)$|^(?:mr|dist)|^configure|^prepare"
)
"""Parts of a target that remove, move or prepare what the others make."""
_TARGET = re.compile(r"^[\w.%-]+[ \t]*:(?!=)", re.MULTILINE)


def _joined(text: str) -> str:
    """Return make's lines: those that end in a backslash go on in the next."""
    return re.sub(r"\\\r?\n", " ", text)


def _module_name(word: str) -> str:
    return word.rsplit("/", 1)[-1].removesuffix(".o").replace("-", "_")
