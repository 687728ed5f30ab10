"""Why a module would not load, in plain words; follows kernel/module/main.c.

The kernel's log is believed first. insmod only has the error number, and its words for it mislead: ENOENT is
"Unknown symbol in module" to it even when an init function returned it over a missing firmware file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kmlab.common.events import printable
from kmlab.kernel.module.failure import Failure, errno_name, errno_of, explain_errno, last_line
from kmlab.kernel.module.load_log import (
    Log,
    SymbolOwner,
    bad_parameter,
    refused_signature,
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
) -> Failure | None:
    """Why `insmod` ended with `exit_code`, or None where nothing failed.

    `records_text` are the kernel's records since just before the insmod, without time and level, because the
    refusals of a signature do not name the module. `symbol_owner` is from Module.symvers or modules.symbols.
    `already_loaded` is whether the module was there before: the one thing that tells the kernel's EEXIST
    from the init's own. A positive return of init is reported though the kernel loads the module all the
    same.
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
        or _other_refusal(log, module)
        or _missing_firmware(stderr, log, module)
        or _by_errno(stderr, exit_code, log, module, kernel_release, modinfo, already_loaded)
    )
    # Names and values come from the guest.
    return replace(failure, reason=printable(failure.reason))


def not_listed(module: str) -> Failure:
    """The failure of a module of which insmod says that it was loaded, and the kernel does not."""
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
    """The file that is missing, if that can be what init failed of: many drivers go on without."""
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
                f"{module} was stripped of its symbols, which the kernel needs to load it: take it as make left it, "
                "or strip it with --strip-debug alone.",
                errno=name,
            )
        if modinfo and modinfo.release and modinfo.release != release:
            return Failure("vermagic", vermagic_reason(module, modinfo.release, release), errno=name)
        said = log.find(r"NAME: (.+)|^Invalid ELF.*|[Mm]odule has invalid ELF.*|section \d+ .*")
        detail = f" ({printable(said[0], 120)})" if said else ""
        return Failure(
            "format",
            f"{module}'s file is not a module that this kernel can load{detail}: it may be cut short or made for "
            "another machine; rebuild it in this guest (kmlab build).",
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


def _init_failed(module: str, name: str) -> Failure:
    meaning = explain_errno(name)
    return Failure(
        "init-error",
        f"{module}'s init returned -{name}{f' ({meaning})' if meaning else ''}: look in its init function for where "
        "that comes from; the kernel's log just before may say more.",
        errno=name,
    )
