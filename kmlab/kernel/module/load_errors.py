"""Explain why a module would not load, in plain words; follows kernel/module/main.c.

The kernel's log is believed first. insmod only has the error number, and its words for it mislead: ENOENT is
"Unknown symbol in module" to it even when an init function returned it over a missing firmware file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from kmlab.common.events import printable
from kmlab.kernel.build.kernel_config import find_stand_ins, remedy
from kmlab.kernel.module.failure import Failure, errno_name, errno_of, explain_errno, last_line
from kmlab.kernel.module.load_log import (
    Log,
    SymbolOwner,
    bad_parameter,
    refused_signature,
    unfit_file,
    unresolved,
    vermagic_reason,
    wrong_version,
)
from kmlab.kernel.module.modinfo import ModInfo


def explain_load_failure(
    stderr: str,
    exit_code: int | None,
    records_text: Sequence[str],
    module: str,
    kernel_release: str,
    modinfo: ModInfo | None = None,
    symbol_owner: SymbolOwner | Mapping[str, str] | None = None,
    already_loaded: bool | None = None,
    sources: Callable[[], Iterable[str]] | None = None,
    config: Callable[[], Mapping[str, str]] | None = None,
) -> Failure | None:
    """Why `insmod` ended with `exit_code`, or None where nothing failed.

    `records_text` are the kernel's records since just before the insmod, without time and level, because the
    refusals of a signature do not name the module. `symbol_owner` is from Module.symvers or modules.symbols.
    `already_loaded` is whether the module was there before: the one thing that tells the kernel's EEXIST
    from the init's own. A positive return of init is reported though the kernel loads the module all the
    same. `sources` and `config`, the module's sources and the options of the kernel, are asked for only where they
    tell more.
    """
    log = Log(records_text, module)
    if exit_code == 0:
        return _positive_return(log, module)
    owner = symbol_owner.get if isinstance(symbol_owner, Mapping) else symbol_owner
    failure = (
        _killed(exit_code, log, module)
        or refused_signature(log, module)
        or wrong_version(log, module, kernel_release, modinfo)
        or unresolved(log, module, modinfo, owner or (lambda symbol: None))
        or bad_parameter(log, module, modinfo)
        or unfit_file(log, module)
        or _other_refusal(log, module)
        or _missing_firmware(stderr, log, module)
        or _by_errno(stderr, exit_code, log, module, kernel_release, modinfo, already_loaded)
    )
    if failure.kind == "init-error" and failure.errno == "ENOSYS" and sources is not None:
        failure = _stand_in(module, kernel_release, sources(), config() if config else None) or failure
    # Names and values come from the guest.
    return replace(failure, reason=printable(failure.reason))


def not_listed(module: str) -> Failure:
    """Return the failure of a module of which insmod says that it was loaded, and the kernel does not."""
    return Failure(
        "not-listed",
        printable(
            f"insmod of {module} ended with 0, but the kernel has not loaded it: is another program in insmod's place, "
            "or did the module unload itself?"
        ),
    )


def find_ignored_params(records_text: Sequence[str], module: str) -> list[str]:
    """Parameters that the kernel did not know; it loads the module all the same."""
    return [found[1] for found in Log(records_text, module).find_all(r"NAME: unknown parameter '([^'\n]*)' ignored")]


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


def unknown_key_note(records_text: Iterable[str]) -> str | None:
    """Return a note if the kernel does not know who signed a module, and nothing shows whether it insists on that."""
    texts = list(records_text)
    if not any("PKCS#7 signature not signed with a trusted key" in text for text in texts):
        return None
    if any("module verification failed: " in text for text in texts):
        return None
    return (
        "a module's signature is by a key that this kernel does not know: a kernel that insists on signatures refuses "
        "such a module (enrol the key: kmlab sign --mok)"
    )


class RefusedLoad(NamedTuple):
    """A load that a saved log says was refused."""

    module: str | None
    """None where the kernel does not say which: it does not for most of what it has against a signature."""
    failure: Failure
    said: str
    """The first line that speaks of it."""


def find_refused_loads(records_text: Iterable[str]) -> list[RefusedLoad]:
    """Find the modules that a log says were not loaded, each once, with the reason that a run would give.

    Only refusals count, not an error that a module's own init returned.
    """
    named: dict[str, list[str]] = {}
    unnamed: dict[str, None] = {}
    inserted: dict[str, str] = {}
    release, permissive = "", False
    for text in records_text:
        if text.startswith("Linux version "):
            release = text.split(" ", 3)[2]
        permissive = permissive or "module verification failed: " in text
        if not _REFUSAL.search(text):
            continue
        name = next((match["module"] for pattern in _NAMING if (match := pattern.search(text))), None)
        inserting = _INSERTING.search(text)
        if name is not None:
            if name in named or len(named) < _MOST_MODULES:
                known = named.setdefault(_name_of(name), [])
                known += [text] if len(known) < _MOST_LINES else []
        elif inserting and (errno_of(text) in _REFUSING or _WITHOUT_SYMBOL in text):
            inserted.setdefault(_name_of(inserting["module"]), text)
        elif len(unnamed) < _MOST_MODULES and (
            refused_signature(Log([text], ""), "") or unfit_file(Log([text], ""), "")
        ):
            unnamed[text] = None
    if permissive:
        # A kernel that does not insist on a signature only says that it does not know the key.
        unnamed = {text: None for text in unnamed if "unknown module key" not in text}
    alone = next(iter(inserted)) if len(inserted) == 1 and not named else None
    if alone is not None:
        # Where a program names the one module that the kernel refused without a name, that is the one.
        named[alone], unnamed = list(unnamed), {}
    found = [_refused(name, lines, inserted.get(name, ""), release) for name, lines in named.items()]
    found += [_refused(name, [], words, release) for name, words in inserted.items() if name not in named]
    kinds = {load.failure.kind for load in found} - {"signature"}
    found += [load for text in unnamed if (load := _refused(None, [text], "", release)).failure.kind not in kinds]
    return list({load.failure.reason: load for load in reversed(found)}.values())[::-1]


def _refused(name: str | None, lines: list[str], words: str, release: str) -> RefusedLoad:
    called = name or "the module"
    if not lines and _WITHOUT_SYMBOL in words:
        return RefusedLoad(name, _without_symbol(called), printable(words, 400))
    failure = explain_load_failure(words, 1, lines, called, release)
    assert failure is not None  # An exit code other than 0 always has its reason.
    return RefusedLoad(name, failure, printable(lines[0] if lines else words, 400))


def _without_symbol(module: str) -> Failure:
    """Explain a load of which only insmod's words are known."""
    return Failure(
        "unknown-symbol",
        f"{module} needs a symbol that nobody exports, or its init returned -ENOENT, as insmod's words are the same: "
        "the kernel's log (dmesg) names the symbol.",
        errno="ENOENT",
    )


def _name_of(word: str) -> str:
    """Give the kernel's name of a module, from the name of its file."""
    return re.sub(r"\.ko(?:\.\w+)?$", "", word.rsplit("/", 1)[-1]).replace("-", "_")


_MOST_MODULES, _MOST_LINES = 100, 100
_MODULE = r"(?P<module>[A-Za-z_0-9][\w-]{0,63})"
_NAMING = (
    re.compile(
        rf"(?:^|[\s'`]){_MODULE}: (?:disagrees about version of symbol \S|version magic '|Unknown symbol \S"
        r"|no symbol version for \S|module uses symbol \S{1,200} from namespace|module using GPL-only symbols"
        r"|exports duplicate symbol|[`'][^`'\n]{0,200}' (?:invalid|too large) for parameter"
        r"|gave up waiting for init|module has no symbols|target [0-9a-f]+ can ?not be addressed"
        r"|section \d+ reloc \d+|overflow in relocation|unsupported RELA|[Uu]nknown (?:rela )?relocation"
        r"|The unexpected relocation)"
    ),
    re.compile(rf"failed to validate module \[{_MODULE}\] BTF: -"),
    re.compile(rf"[`']{_MODULE}' likely not compiled with"),
    re.compile(rf"module {_MODULE}: (?:[Uu]nsupported|[Uu]nknown) (?:RELA|rela|relocation)"),
)
"""How the kernel names the module that it refuses."""
_INSERTING = re.compile(
    r"(?:[Cc]ould not insert (?:module )?|can't insert |[Ff]ailed to insert (?:module )?|error inserting )"
    r"['\"`]?(?P<module>[\w./+-]{1,255})['\"`]?: "
)
"""insmod and modprobe of kmod, of busybox and of module-init-tools; systemd-modules-load."""
_REFUSING = ("ENOEXEC", "EKEYREJECTED", "ENOKEY", "ENOPKG", "EBADMSG", "EPERM")
"""Errors that hardly any init function returns."""
_WITHOUT_SYMBOL = "Unknown symbol in module"
"""What insmod and modprobe say of -ENOENT."""
_REFUSAL = re.compile(
    r": disagrees about|: version magic|Unknown symbol|no symbol version|module uses symbol|using GPL-only"
    r"|duplicate symbol|for parameter|gave up waiting|no symbols|can ?not be addressed|reloc|RELA|BTF: -"
    r"|not compiled with"
    r"|is rejected|is restricted|unsigned module|unknown module key|Invalid architecture|insert"
    r"|PKCS#7 signature not signed"
)
"""A quick look: no line without any of these speaks of a refusal."""
_REFUSAL_BYTES = (
    b" symbol ",
    b"version magic '",
    b"' for parameter ",
    b"reloc",
    b" BTF: -",
    b" is re",
    b"insert",
    b"PKCS#7",
)


def may_be_refusal(text: str) -> bool:
    """Tell whether find_refused_loads has a use for the line."""
    return text.startswith("Linux version ") or "module verification failed: " in text or bool(_REFUSAL.search(text))


def is_of_insmod(text: str) -> bool:
    """Tell whether a program says in the line that it could not load a module."""
    return _INSERTING.search(text) is not None


def may_refuse(data: bytes) -> bool:
    """Whether some line in these bytes probably speaks of a refusal. Cheap, so that a flood need not be read for it."""
    return any(needle in data for needle in _REFUSAL_BYTES)


def _positive_return(log: Log, module: str) -> Failure | None:
    found = log.find(r"(?:'NAME'->|NAME: )init suspiciously returned (\d+)")
    if not found:
        return None
    return Failure(
        "init-positive",
        f"{module}'s init returned {found[1]}, which is neither 0 nor a negative error; the kernel loaded it anyway: "
        "return 0 for success, or -E… for a failure.",
    )


def _killed(exit_code: int | None, log: Log, module: str) -> Failure | None:
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


def _other_refusal(log: Log, module: str) -> Failure | None:
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


def _missing_firmware(stderr: str, log: Log, module: str) -> Failure | None:
    """Return the file that is missing, if that can be what init failed of: many drivers go on without."""
    firmware = log.find(r"Direct firmware load for (\S+) failed with error (-?\d+)")
    name = errno_of(stderr)
    if not firmware or name not in (None, errno_name(abs(int(firmware[2]))), "ENOENT", "EAGAIN"):
        return None
    return Failure(
        "firmware",
        f"{module} asked for the firmware file {firmware[1]}, which is not in the guest: put it into /lib/firmware "
        "there, or let the module do without.",
        errno=errno_name(abs(int(firmware[2]))),
        subject=firmware[1],
    )


def _by_errno(
    stderr: str,
    exit_code: int | None,
    log: Log,
    module: str,
    release: str,
    modinfo: ModInfo | None,
    already_loaded: bool | None,
) -> Failure:
    """Return what can be told from the error's number alone, when the kernel said nothing of its own."""
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
            f"{module} is loaded already (kmlab unload), or its own init returned -EEXIST because something of that "
            "name is registered.",
            errno=name,
        )
    if name == "EKEYREJECTED":
        return Failure(
            "signature",
            f"{module}'s signature does not fit its content: it was altered after it was signed; sign it again (kmlab "
            "sign).",
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
            f"loading {module} was not permitted, or its init returned -EPERM: it takes root, a kernel that still "
            "allows modules (kernel.modules_disabled), and under lockdown a signature (kmlab sign).",
            errno=name,
        )
    if name == "ENOEXEC":
        if modinfo and modinfo.release and modinfo.release != release:
            return Failure("vermagic", vermagic_reason(module, modinfo.release, release), errno=name)
        said = log.find(r"NAME: (.+)|^Invalid ELF.*|[Mm]odule has invalid ELF.*|section \d+ .*")
        detail = f" ({printable(said[0], 120)})" if said else ""
        return Failure(
            "format",
            f"{module}'s file is not a module that this kernel can load{detail}: it may be cut short or made for "
            "another machine; rebuild it for this kernel (kmlab build).",
            errno=name,
        )
    if name == "ENOMEM":
        return Failure(
            "memory",
            f"there was no memory for {module}, or its init returned -ENOMEM: give the guest more, or let it ask for "
            "less.",
            errno=name,
        )
    if name is not None:
        return _init_failed(module, name)
    said_last = last_line(stderr) or f"insmod ended with {exit_code}"
    return Failure("load", f"{module} would not load: {said_last}.")


def _stand_in(module: str, release: str, sources: Iterable[str], config: Mapping[str, str] | None) -> Failure | None:
    """Explain that init called a function of which this kernel has an empty stand-in, as an option is off."""
    found = find_stand_ins(sources, config or None, release)
    if found is None:
        return None
    function, option = found
    return Failure(
        "init-error",
        f"{module}'s init returned -ENOSYS: {function}() does nothing but return that in a kernel without "
        f"CONFIG_{option}, as {release} is; {remedy(option, release)}.",
        errno="ENOSYS",
        subject=f"CONFIG_{option}",
    )


def _init_failed(module: str, name: str) -> Failure:
    meaning = explain_errno(name)
    return Failure(
        "init-error",
        f"{module}'s init returned -{name}{f' ({meaning})' if meaning else ''}: look in its init function for where "
        "that comes from; the kernel's log just before may say more.",
        errno=name,
    )
