"""Find what make files and sources name that lies above a module's folder: `../VERSION`, `-I$(src)/../include`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

_SOURCE = (".c", ".h", ".S", ".s", ".cc", ".cpp", ".hpp", ".inc", ".dts", ".dtsi")
_MAKE_ENDINGS = (".mk", ".mak", ".make", ".inc")
_HERE = (
    r"\$\(shell\s+pwd(?:\s+-P)?\)|`pwd`|\$\$\(pwd\)"
    r"|\$[({](?!(?:srctree|objtree|K\w*|LINUX\w*|HOME|DESTDIR|INSTALL\w*|PREFIX|prefix)[)}])\w+[)}]"
)
"""What may stand for the module's folder: a variable, unless its name says that it is the kernel's or the system's."""
_ABOVE = re.compile(rf"\$\(dir\s+(?:{_HERE})\)|\$\(shell\s+dirname\s+(?:{_HERE})\s*\)|\$\(dir\s+\$\(abspath\s+\.\)\)")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]((?:[^"<>\n]*/)?\.\./[^"<>\n]{1,200})[">]', re.MULTILINE)
_WORD = re.compile(r"""[^\s=:,'"()`;|&<>{}\\]+""")
_FLAG = re.compile(r"^-(?:I|L|F|iquote|isystem|include|imacros|idirafter|C|f)?")


def is_read(name: str) -> bool:
    """Return whether a file of that name can say that the build needs something: a make file or a source."""
    return is_makefile(name) or name.endswith(_SOURCE)


def is_makefile(name: str) -> bool:
    """Return whether make or kbuild reads a file of that name."""
    lower = name.lower()
    return (
        lower in ("kbuild", "gnumakefile", "dkms.conf") or lower.startswith("makefile") or lower.endswith(_MAKE_ENDINGS)
    )


def outward_paths(path: str, text: str) -> Iterator[str]:
    """Yield what the file at `path`, relative to some folder, names above itself, relative to the same folder.

    They are candidates: whether one exists is for the caller to see. A pattern, or an object that is yet to be built,
    stands for its folder or its source.
    """
    folder = posixpath.dirname(path)
    named = _in_makefile(text) if is_makefile(posixpath.basename(path)) else (m[1] for m in _INCLUDE.finditer(text))
    yield from dict.fromkeys(posixpath.normpath(posixpath.join(folder, name)) for name in named)


def candidates(path: str) -> tuple[str, ...]:
    """Return which files or folders a name may mean, the best first: the name itself, its sources, its folder."""
    stem = path[: -len(".o")] if path.endswith(".o") else None
    sources = () if stem is None else (f"{stem}.c", f"{stem}.S", f"{stem}.rs", f"{stem}.o_shipped")
    above = posixpath.dirname(path)
    # ".." alone is no reason to send everything that lies above a folder.
    folder = (above,) if above and posixpath.basename(above) not in ("", "..") else ()
    return (path, *sources, *folder)


def _parent(call: re.Match[str]) -> str:
    """Return what a call that names the folder above the module's stands for: make's own leaves a slash."""
    return "../" if call[0].startswith("$(dir ") else ".."


def _in_makefile(text: str) -> Iterator[str]:
    text = re.sub(r"\\\r?\n", " ", text)
    for line in text.splitlines():
        said = re.sub(r"(?<!\\)#.*", "", line)
        said = re.sub(_HERE, ".", _ABOVE.sub(_parent, said)) if "$" in said or "`" in said else said
        if ".." not in said:
            continue
        for word in _WORD.findall(said):
            # A leading slash is left of what stood for the folder.
            path = _FLAG.sub("", word).lstrip("@+-!")
            if not path.startswith(("/", "$", "~")) and ".." in path.split("/"):
                yield path.rstrip("/") or "."
