"""Read in the kernel's log why it refuses a module: signature, version, symbols, parameters, the file itself.

Follows kernel/module/main.c, signing.c and version.c, and kernel/params.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from kmlab.kernel.module.failure import Failure
from kmlab.kernel.module.modinfo import ModInfo

SymbolOwner = Callable[[str], str | None]
"""Who exports a symbol: the name of a module, `vmlinux`, or None."""


class Log:
    """The records of one load as one text, because a module may print a hundred thousand lines."""

    def __init__(self, records: Sequence[str], module: str) -> None:
        self._text = "\n".join(record.rstrip() for record in records)
        self._name = r"(?<![\w-])" + re.escape(module).replace("_", "[-_]")

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the first place that matches; `NAME` in the pattern is the module's name, `^` a line's begin."""
        return next(self.find_all(pattern), None)

    def find_all(self, pattern: str) -> Iterator[re.Match[str]]:
        return re.finditer(pattern.replace("NAME", self._name), self._text, re.MULTILINE)


_SIGNATURES = (
    (
        r"Loading of unsigned module is rejected",
        "is not signed (or was stripped after it was) and this kernel takes only signed modules: sign it with kmlab "
        "sign.",
        "EKEYREJECTED",
    ),
    (
        r"Loading of module with unavailable key is rejected",
        "is signed with a key that this kernel does not know: enrol it with kmlab sign --mok.",
        "EKEYREJECTED",
    ),
    (
        r"Loading of module with unsupported crypto is rejected",
        "is signed in a way that this kernel cannot check: use RSA and SHA-256, as kmlab sign does.",
        "EKEYREJECTED",
    ),
    (
        # Since Linux 5.4 in the first words; distributions' own lockdown of 4.4 to 5.3 has the others.
        r"Lockdown: (?:\S+ )?unsigned module loading is restricted"
        r"|(?:Lockdown: )?(?:\S+: )?Loading of unsigned modules? is restricted"
        r"|lockdown_reason=\"unsigned module loading\"",
        "is not signed with a key that this kernel knows, and the kernel is locked down: sign it with kmlab sign.",
        "EPERM",
    ),
)
"""What the kernel says, what it means, and the error that insmod gets."""
_UNKNOWN_KEY = re.compile(r"Request for unknown module key '[^'\n]*' err -\d+")
"""As kernels before Linux 5.4 say it, whether they insist on a signature or go on without."""

_FILES = (
    (
        r"failed to validate module \[NAME\] BTF: -\d+",
        "btf",
        "{module}'s type information (BTF) does not fit this kernel's: it was built against another vmlinux; rebuild "
        "it against this very kernel, or take it out (objcopy --remove-section=.BTF).",
        "EINVAL",
    ),
    (
        # arch/*/kernel/module.c. x86 and s390 name no module; x86 adds a line about the code model.
        r"NAME' likely not compiled with -mcmodel=kernel"
        r"|overflow in relocation type \d+"
        r"|NAME: target [0-9a-f]+ can ?not be addressed by the \d+-bit"
        r"|NAME: section \d+ reloc \d+ sym '[^'\n]*': (?:relocation \d+ out of range|unsupported)"
        r"|relocation (?:R_\w+ )?overflow|REL(?:16|24) \S+ (?:out of range|overflows)",
        "relocation",
        "{module} has a relocation that is out of range here: it was built with other flags for its code model than "
        "this kernel; rebuild it with this kernel's own Makefile (kmlab build).",
        "ENOEXEC",
    ),
    (
        r"Invalid relocation target, existing value is nonzero|Skipping invalid relocation target",
        "format",
        "{module} was relocated already, as a linked program is: give the .ko as make left it.",
        "ENOEXEC",
    ),
    (
        r"(?:module )?NAME: (?:[Uu]nknown|[Uu]nsupported|The unexpected)[^\n]{0,40} (?:relocation|RELA)"
        r"|[Uu]nknown (?:rela )?relocation(?: type)?: ?\d+|NAME: unsupported RELA",
        "relocation",
        "{module} has a relocation of a kind that this kernel does not know: it was built by a compiler or with flags "
        "that are not this kernel's; rebuild it with this kernel's own Makefile (kmlab build).",
        "ENOEXEC",
    ),
    (
        r"^Invalid architecture in ELF header",
        "format",
        "{module} was built for another kind of processor: rebuild it for this one (kmlab build).",
        "ENOEXEC",
    ),
    (
        r"NAME: module has no symbols",
        "format",
        "{module} was stripped of its symbols, which the kernel needs to load it: take it as make left it, or strip it "
        "with --strip-debug alone.",
        "ENOEXEC",
    ),
)
"""What the kernel says of a file that it cannot load, a word for it, what it means, and the error that insmod gets."""


def unfit_file(log: Log, module: str) -> Failure | None:
    """Explain why the file itself is refused, before anything in it runs: relocations, type information, format."""
    for pattern, kind, reason, errno in _FILES:
        if log.find(pattern):
            return Failure(kind, reason.format(module=module), errno=errno)
    return None


def refused_signature(log: Log, module: str) -> Failure | None:
    found = next((row for row in _SIGNATURES if log.find(row[0])), None)
    if found is None and log.find(_UNKNOWN_KEY.pattern) and not log.find(r"NAME: module verification failed"):
        found = _SIGNATURES[1]
    return Failure("signature", f"{module} {found[1]}", errno=found[2]) if found else None


def wrong_version(log: Log, module: str, release: str, modinfo: ModInfo | None) -> Failure | None:
    magic = log.find(r"NAME: version magic '([^'\n]*)' should be '([^'\n]*)'")
    if magic:
        return Failure("vermagic", vermagic_reason(module, magic[1].strip(), magic[2].strip()), errno="ENOEXEC")
    disagrees = log.find(r"NAME: disagrees about version of symbol (\S+)")
    if disagrees:
        built = f" (it says {modinfo.release})" if modinfo and modinfo.release and modinfo.release != release else ""
        what = (
            f"was built against the headers of another kernel than {release or 'this one'}{built}"
            if disagrees[1] == "module_layout"
            else f"expects another version of {disagrees[1]}() than this {release or 'kernel'} has{built}"
        )
        return Failure(
            "symbol-version",
            f"{module} {what}: rebuild it for this kernel (kmlab build), after removing what was built elsewhere.",
            symbol=disagrees[1],
            errno="ENOEXEC" if disagrees[1] == "module_layout" else "EINVAL",
        )
    no_version = log.find(r"NAME: no symbol version for (\S+)")
    if no_version:
        return Failure(
            "symbol-version",
            f"{module} has no version of {no_version[1]}(): give make the Module.symvers of the module that exports "
            "it (KBUILD_EXTRA_SYMBOLS).",
            symbol=no_version[1],
        )
    return None


def vermagic_reason(module: str, built: str, wanted: str) -> str:
    built_for, runs = built.partition(" ")[0], wanted.partition(" ")[0]
    if built_for != runs:
        return (
            f"{module} was built for the kernel {built_for} and this one is {runs}: rebuild it for this one (kmlab "
            "build)."
        )
    return (
        f"{module} was built for a kernel configured otherwise ('{built}', this is '{wanted}'): rebuild it against "
        "this kernel's own headers (kmlab build)."
    )


def unresolved(log: Log, module: str, modinfo: ModInfo | None, owner: SymbolOwner) -> Failure | None:
    space = log.find(r"NAME: module uses symbol \(?(\w+)\)? from namespace (\w+), but does not import it")
    if space:
        return Failure(
            "namespace",
            f"{module} uses {space[1]}() of the namespace {space[2]} and does not import it: add "
            f'MODULE_IMPORT_NS("{space[2]}"), without the quotes before Linux 6.13.',
            symbol=space[1],
            errno="EINVAL",
        )
    mixed = log.find(r"NAME: module using GPL-only symbols uses symbols (\S+) from proprietary module (\w+)")
    if mixed:
        return Failure(
            "gpl-only",
            f"{module} uses GPL-only symbols and also {mixed[1]}() of the proprietary module {mixed[2]}: the kernel "
            "does not allow both.",
            symbol=mixed[1],
        )
    waited = log.find(r"NAME: gave up waiting for init of module (\w+)")
    if waited:
        return Failure(
            "dependency",
            f"{module} needs {waited[1]}, whose init never finished: see what {waited[1]} does there.",
            subject=waited[1],
            errno="EBUSY",
        )
    unknown = [found[1] for found in log.find_all(r"NAME: Unknown symbol (\S+)(?: \(err -?\d+\))?\s*$")]
    return _unknown_symbol(module, list(dict.fromkeys(unknown)), modinfo, owner) if unknown else None


def _unknown_symbol(module: str, symbols: list[str], modinfo: ModInfo | None, owner: SymbolOwner) -> Failure:
    first = symbols[0]
    more = f" (and {len(symbols) - 1} more)" if len(symbols) > 1 else ""
    home = owner(first)
    # To a module that is not GPL-compatible the kernel does not show GPL-only symbols at all: find_symbol().
    hidden = modinfo is not None and not modinfo.gpl_compatible and (home is not None or owner is None)
    if hidden and modinfo is not None:
        return Failure(
            "gpl-only",
            f"{module} uses {first}(){more}, which is for GPL modules only, and its licence is "
            f"'{modinfo.license or 'unspecified'}': use MODULE_LICENSE(\"GPL\") if that is true, else do without.",
            symbol=first,
            errno="ENOENT",
        )
    if home is not None and home != "vmlinux":
        return Failure(
            "unknown-symbol",
            f"{module} needs {first}(){more}, which the module {home} exports: load {home} first (modprobe {home}).",
            symbol=first,
            errno="ENOENT",
            subject=home,
        )
    return Failure(
        "unknown-symbol",
        f"{module} needs {first}(){more}, which this kernel does not export and no loaded module has: load the module "
        "that exports it first, or use what the kernel offers instead.",
        symbol=first,
        errno="ENOENT",
    )


def bad_parameter(log: Log, module: str, modinfo: ModInfo | None) -> Failure | None:
    many = log.find(r"(\w+): can only take (\d+) arguments")
    if many:
        return Failure(
            "parameter",
            f"{module}'s parameter {many[1]} takes at most {many[2]} elements: give fewer.",
            errno="EINVAL",
            subject=many[1],
        )
    invalid = log.find(r"NAME: [`']([^`']*)' (invalid|too large) for parameter [`']([^`']*)'")
    if invalid:
        param = invalid[3]
        kind = next((p.type for p in modinfo.params if p.name == param), "") if modinfo else ""
        wanted = f", which is of type {kind}" if kind else ""
        return Failure(
            "parameter",
            f"{module} does not take '{invalid[1]}' for its parameter {param}{wanted}: give another value (-p "
            f"{param}=…).",
            errno="EINVAL" if invalid[2] == "invalid" else "ENOSPC",
            subject=param,
        )
    unknown = log.find(r"NAME: Unknown parameter [`']([^`']*)'")
    if unknown:
        known = ", ".join(param.name for param in modinfo.params) if modinfo else ""
        return Failure(
            "parameter",
            f"{module} has no parameter {unknown[1]}: "
            f"{f'it has {known}' if known else 'see modinfo for those it has'}.",
            errno="ENOENT",
            subject=unknown[1],
        )
    return None
