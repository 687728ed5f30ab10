"""Why a module would not load or unload, in plain words; follows kernel/module/main.c and kernel/params.c.

The kernel's log is believed first. insmod only has the error number, and its words for it mislead: ENOENT is
"Unknown symbol in module" to it even when an init function returned it over a missing firmware file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kmlab.events import printable
from kmlab.kernel.failure import Failure, errno_name, errno_of, explain_errno, last_line
from kmlab.kernel.modinfo import ModInfo
from kmlab.kernel.unloading import explain_unload_failure

__all__ = [
    "Failure",
    "SymbolOwner",
    "explain_load_failure",
    "explain_unload_failure",
    "find_ignored_params",
    "parse_symbol_owners",
]

SymbolOwner = Callable[[str], str | None]
"""Who exports a symbol: the name of a module, `vmlinux`, or None."""


def explain_load_failure(
    stderr: str,
    exit_code: int | None,
    records_text: Sequence[str],
    module: str,
    kernel_release: str,
    modinfo: ModInfo | None = None,
    symbol_owner: SymbolOwner | Mapping[str, str] | None = None,
    already_loaded: bool | None = None,
) -> Failure | None:
    """Why `insmod` ended with `exit_code`, or None where nothing failed.

    `records_text` are the kernel's records since just before the insmod, without time and level, because the
    refusals of a signature do not name the module. `symbol_owner` is from Module.symvers or modules.symbols.
    `already_loaded` is whether the module was there before: the one thing that tells the kernel's EEXIST
    from the init's own. A positive return of init is reported though the kernel loads the module all the
    same.
    """
    log = _Log(records_text, module)
    if exit_code == 0:
        return _positive_return(log, module)
    owner = symbol_owner.get if isinstance(symbol_owner, Mapping) else symbol_owner
    failure = (
        _killed(exit_code, log, module)
        or _refused_signature(log, module)
        or _wrong_version(log, module, kernel_release, modinfo)
        or _unresolved(log, module, modinfo, owner or (lambda symbol: None))
        or _bad_parameter(log, module, modinfo)
        or _other_refusal(log, module)
        or _missing_firmware(stderr, log, module)
        or _by_errno(stderr, exit_code, log, module, kernel_release, modinfo, already_loaded)
    )
    # Names and values come from the guest.
    return replace(failure, reason=printable(failure.reason))


def parse_symbol_owners(text: str) -> dict[str, str]:
    """Who exports what, out of a Module.symvers or a modules.symbols: symbol to module, or to `vmlinux`."""
    owners: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("0x"):
            fields = line.split("\t")
            if len(fields) > 2:
                owners[fields[1]] = fields[2].rsplit("/", 1)[-1]
        elif line.startswith("alias symbol:"):
            fields = line.split()
            if len(fields) > 2:
                owners[fields[1].removeprefix("symbol:")] = fields[2]
    return owners


class _Log:
    """The records of one load as one text, because a module may print a hundred thousand lines."""

    def __init__(self, records: Sequence[str], module: str) -> None:
        self._text = "\n".join(record.rstrip() for record in records)
        self._name = r"(?<![\w-])" + re.escape(module).replace("_", "[-_]")

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first place that matches; `NAME` in the pattern is the module's name, `^` a line's begin."""
        return next(self.find_all(pattern), None)

    def find_all(self, pattern: str) -> Iterator[re.Match[str]]:
        return re.finditer(pattern.replace("NAME", self._name), self._text, re.MULTILINE)


def _positive_return(log: _Log, module: str) -> Failure | None:
    found = log.find(r"(?:'NAME'->|NAME: )init suspiciously returned (\d+)")
    if not found:
        return None
    return Failure(
        "init-positive",
        f"{module}'s init returned {found[1]}, which is neither 0 nor a negative error; the kernel loaded "
        "it anyway: "
        "return 0 for success, or -E… for a failure.",
    )


def _killed(exit_code: int | None, log: _Log, module: str) -> Failure | None:
    if exit_code is None:
        return Failure(
            "init-hang",
            f"{module}'s init did not return in time: look for a lock it waits for or a loop without end.",
        )
    # A shell says 128 + signal, a program that started insmod by itself may say -signal: SIGKILL, SIGSEGV.
    if exit_code not in (137, 139, -9, -11):
        return None
    if log.find(_CRASH):
        return Failure(
            "init-crash",
            f"{module}'s init crashed the kernel and insmod was killed with it: the crash names function and line.",
        )
    if log.find(r"[Oo]ut of memory: Kill(?:ed)? process"):
        return Failure("memory", f"insmod of {module} was killed because the guest ran out of memory: give it more.")
    return Failure("killed", f"insmod of {module} was killed by a signal before the module's init returned.")


_CRASH = (
    r"^(?:BUG: |Oops\b|general protection fault|divide error|kernel BUG at|Internal error:|"
    r"Unable to handle kernel)"
)


def _refused_signature(log: _Log, module: str) -> Failure | None:
    if log.find(r"Loading of unsigned module is rejected"):
        return Failure(
            "signature",
            f"{module} is not signed (or was stripped after it was) and this guest's kernel takes only "
            "signed modules: "
            "sign it with kmlab sign.",
            errno="EKEYREJECTED",
        )
    if log.find(r"Loading of module with unavailable key is rejected"):
        return Failure(
            "signature",
            f"{module} is signed with a key that this guest does not know: enrol it with kmlab sign --mok.",
            errno="EKEYREJECTED",
        )
    if log.find(r"Loading of module with unsupported crypto is rejected"):
        return Failure(
            "signature",
            f"{module} is signed in a way that this kernel cannot check: use RSA and SHA-256, as kmlab sign does.",
            errno="EKEYREJECTED",
        )
    if log.find(r"Lockdown: \S+ unsigned module loading is restricted"):
        return Failure(
            "signature",
            f"{module} is not signed by a key of this guest, and its kernel is locked down: sign it with kmlab sign.",
            errno="EPERM",
        )
    return None


def _wrong_version(log: _Log, module: str, release: str, modinfo: ModInfo | None) -> Failure | None:
    magic = log.find(r"NAME: version magic '([^'\n]*)' should be '([^'\n]*)'")
    if magic:
        return Failure("vermagic", _vermagic_reason(module, magic[1].strip(), magic[2].strip()), errno="ENOEXEC")
    disagrees = log.find(r"NAME: disagrees about version of symbol (\S+)")
    if disagrees:
        built = f" (it says {modinfo.release})" if modinfo and modinfo.release and modinfo.release != release else ""
        what = (
            f"was built against the headers of another kernel than {release}{built}"
            if disagrees[1] == "module_layout"
            else f"expects another version of {disagrees[1]}() than this {release} has{built}"
        )
        return Failure(
            "symbol-version",
            f"{module} {what}: rebuild it in this guest (kmlab build), after removing what was built elsewhere.",
            symbol=disagrees[1],
            errno="ENOEXEC" if disagrees[1] == "module_layout" else "EINVAL",
        )
    no_version = log.find(r"NAME: no symbol version for (\S+)")
    if no_version:
        return Failure(
            "symbol-version",
            f"{module} has no version of {no_version[1]}(): give make the Module.symvers of the module that "
            "exports it "
            "(KBUILD_EXTRA_SYMBOLS).",
            symbol=no_version[1],
        )
    return None


def _vermagic_reason(module: str, built: str, wanted: str) -> str:
    built_for, runs = built.partition(" ")[0], wanted.partition(" ")[0]
    if built_for != runs:
        return (
            f"{module} was built for the kernel {built_for} and this guest runs {runs}: rebuild it here (kmlab build)."
        )
    return (
        f"{module} was built for a kernel configured otherwise ('{built}', this is '{wanted}'): "
        "rebuild it against this guest's own headers (kmlab build)."
    )


def _unresolved(log: _Log, module: str, modinfo: ModInfo | None, owner: SymbolOwner) -> Failure | None:
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
            f"{module} uses GPL-only symbols and also {mixed[1]}() of the proprietary module {mixed[2]}: "
            "the kernel does not allow both.",
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
    unknown = [found[1] for found in log.find_all(r"NAME: Unknown symbol (\S+) \(err -?\d+\)")]
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
            f"'{modinfo.license or 'unspecified'}': use MODULE_LICENSE(\"GPL\") if that is true, else do "
            "without.",
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
        f"{module} needs {first}(){more}, which this kernel does not export and no loaded module has: load "
        "the module "
        "that exports it first, or use what the kernel offers instead.",
        symbol=first,
        errno="ENOENT",
    )


def _bad_parameter(log: _Log, module: str, modinfo: ModInfo | None) -> Failure | None:
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
            f"{module} does not take '{invalid[1]}' for its parameter {param}{wanted}: give another value "
            f"(-p {param}=…).",
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


def find_ignored_params(records_text: Sequence[str], module: str) -> list[str]:
    """Parameters that the kernel did not know; it loads the module all the same."""
    return [found[1] for found in _Log(records_text, module).find_all(r"NAME: unknown parameter '([^'\n]*)' ignored")]


def _other_refusal(log: _Log, module: str) -> Failure | None:
    duplicate = log.find(r"NAME: exports duplicate symbol (\S+) \(owned by (\w+)\)")
    if duplicate:
        return Failure(
            "duplicate-symbol",
            f"{module} exports {duplicate[1]}, which {duplicate[2]} exports already: rename it, or unload "
            f"{duplicate[2]}.",
            symbol=duplicate[1],
            errno="ENOEXEC",
            subject=duplicate[2],
        )
    failed_alloc = log.find(r"insmod: page allocation failure|vmap allocation for size \d+ failed")
    if failed_alloc:
        return Failure(
            "memory",
            f"there was no memory for {module}: give the guest more, or let it ask for less.",
            errno="ENOMEM",
        )
    # mod_sysfs_init() found /sys/module/NAME, which parts of the kernel itself have too.
    if log.find(r"NAME: module is already loaded"):
        return Failure(
            "exists", f"a part of the kernel itself is called {module}: give your module another name.", errno="EINVAL"
        )
    overridden = log.find(r"NAME: init suspiciously returned -EEXIST")
    if overridden:
        return _init_failed(module, "EEXIST")
    return None


def _missing_firmware(stderr: str, log: _Log, module: str) -> Failure | None:
    """The file that is missing, if that can be what init failed of: many drivers go on without."""
    firmware = log.find(r"Direct firmware load for (\S+) failed with error (-?\d+)")
    name = errno_of(stderr)
    if not firmware or name not in (None, errno_name(abs(int(firmware[2]))), "ENOENT", "EAGAIN"):
        return None
    return Failure(
        "firmware",
        f"{module} asked for the firmware file {firmware[1]}, which is not in the guest: put it into "
        "/lib/firmware "
        "there, or let the module do without.",
        errno=errno_name(abs(int(firmware[2]))),
        subject=firmware[1],
    )


def _by_errno(
    stderr: str,
    exit_code: int | None,
    log: _Log,
    module: str,
    release: str,
    modinfo: ModInfo | None,
    already_loaded: bool | None,
) -> Failure:
    """What can be told from the error's number alone, when the kernel said nothing of its own."""
    name = errno_of(stderr)
    if name == "EEXIST" and already_loaded:
        return Failure(
            "exists",
            f"{module} is loaded already: unload it first (kmlab unload); or rename yours, if that is a module of the "
            "kernel's own.",
            errno=name,
        )
    if name == "EEXIST" and already_loaded is None:
        return Failure(
            "exists",
            f"{module} is loaded already (kmlab unload), or its own init returned -EEXIST because something "
            "of that "
            "name is registered.",
            errno=name,
        )
    if name == "EKEYREJECTED":
        return Failure(
            "signature",
            f"{module}'s signature does not fit its content: it was altered after it was signed; sign it "
            "again "
            "(kmlab sign).",
            errno=name,
        )
    if name in ("ENOKEY", "ENOPKG", "EBADMSG"):
        return Failure(
            "signature",
            f"{module}'s signature cannot be checked by this kernel: sign it with kmlab sign.",
            errno=name,
        )
    if name == "EPERM" and not log.find(r"NAME: "):
        return Failure(
            "permission",
            f"loading {module} was not permitted, or its init returned -EPERM: it takes root, a kernel that "
            "still allows modules "
            "(kernel.modules_disabled), and under lockdown a signature (kmlab sign).",
            errno=name,
        )
    if name == "ENOEXEC":
        if log.find(r"^Invalid architecture in ELF header"):
            made = f" ({modinfo.machine})" if modinfo else ""
            return Failure(
                "format",
                f"{module} was built for another kind of processor{made}: rebuild it for this guest (kmlab build).",
                errno=name,
            )
        if log.find(r"NAME: module has no symbols"):
            return Failure(
                "format",
                f"{module} was stripped of its symbols, which the kernel needs to load it: take it as make left it, or "
                "strip it with --strip-debug alone.",
                errno=name,
            )
        if modinfo and modinfo.release and modinfo.release != release:
            return Failure("vermagic", _vermagic_reason(module, modinfo.release, release), errno=name)
        said = log.find(r"NAME: (.+)|^Invalid ELF.*|[Mm]odule has invalid ELF.*|section \d+ .*")
        detail = f" ({printable(said[0], 120)})" if said else ""
        return Failure(
            "format",
            f"{module}'s file is not a module that this kernel can load{detail}: it may be cut short or "
            "made for another "
            "machine; rebuild it in this guest (kmlab build).",
            errno=name,
        )
    if name == "ENOMEM":
        return Failure(
            "memory",
            f"there was no memory for {module}, or its init returned -ENOMEM: give the guest more, or let "
            "it ask for less.",
            errno=name,
        )
    if name is not None:
        return _init_failed(module, name)
    said_last = last_line(stderr) or f"insmod ended with {exit_code}"
    return Failure("load", f"{module} would not load: {said_last}.")


def _init_failed(module: str, name: str) -> Failure:
    meaning = explain_errno(name)
    return Failure(
        "init-error",
        f"{module}'s init returned -{name}{f' ({meaning})' if meaning else ''}: look in its init function "
        "for where "
        "that comes from; the kernel's log just before may say more.",
        errno=name,
    )
