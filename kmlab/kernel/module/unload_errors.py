"""Why a module would not unload, in plain words; follows delete_module(2) and kernel/module/main.c."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kmlab.kernel.module.failure import Failure, last_line
from kmlab.kernel.module.proc_modules import ProcModule
from kmlab.kernel.module.users import Holder, listed


def explain_unload_failure(
    stderr: str,
    exit_code: int | None,
    module: str,
    there: ProcModule | None = None,
    has_exit: bool = True,
    found: Sequence[Holder] | None = None,
    hidden: bool = False,
) -> Failure | None:
    """Why `rmmod` ended with `exit_code` (None: it never ended), or None where nothing failed.

    `there` is what the kernel lists of it afterwards, None where it is gone or nobody could ask; `has_exit` is from
    its ModInfo. `found` are those besides modules that were found to hold it; None where nobody looked. `hidden` is
    whether the kernel had loaded it and did not list it.
    """
    if exit_code == 0:
        return _still_listed(module) if there is not None else None
    there = there or ProcModule()
    return (
        _by_state(module, there, exit_code, stderr, has_exit, hidden)
        or _by_users(module, there, stderr, found)
        or _by_words(module, exit_code, stderr)
    )


def _still_listed(module: str) -> Failure:
    return Failure(
        "still-listed",
        f"rmmod of {module} ended with 0, but the kernel still has it loaded: is another program in rmmod's place?",
    )


def _by_state(
    module: str, there: ProcModule, exit_code: int | None, stderr: str, has_exit: bool, hidden: bool
) -> Failure | None:
    """Explain it by what the module is, and by the state in which the kernel has it."""
    text = stderr.lower()
    if hidden:
        return Failure(
            "hidden",
            f"{module} is loaded but not in the kernel's list of modules, so rmmod cannot find it: its own code has "
            "taken it off the list.",
        )
    if "not currently loaded" in text or "no such file" in text:
        return Failure("not-loaded", f"{module} is not loaded: its init failed, or something unloaded it before.")
    if there.state == "Loading":
        return Failure(
            "loading",
            f"{module} is still loading: its init has not returned or it crashed, so the kernel will not unload it; "
            "restore the guest (kmlab reset) and look at what init does.",
            errno="EBUSY",
        )
    if exit_code is None:
        return Failure(
            "unload-hang",
            f"{module} did not unload in time: its exit function waits for something that does not come, or a crash "
            "left a lock or a reference behind; restore the guest (kmlab reset).",
        )
    if there.state == "Unloading":
        return Failure("unloading", f"{module} is being unloaded already and its exit function has not returned.")
    if "[permanent]" in there.holders or not has_exit:
        return Failure(
            "no-exit",
            f"{module} has no exit function, so the kernel never unloads it: add one with module_exit().",
            errno="EBUSY",
        )
    return None


def _by_users(module: str, there: ProcModule, stderr: str, found: Sequence[Holder] | None) -> Failure | None:
    """Explain it by who uses the module: other modules, else what was found to hold it."""
    users = list(there.holders) or _users_in(stderr)
    if users:
        which = "that" if len(users) == 1 else "those"
        others = f"; {listed(found)}" if found else ""
        reason = f"{module} is in use by {_listed(users)}: unload {which} first{others}."
        return Failure("in-use", reason, errno="EBUSY", subject=users[0])
    text, refcount = stderr.lower(), there.refcount
    if not (refcount or "is in use" in text or "temporarily unavailable" in text):
        return None
    times = f" ({refcount} reference{'s' if refcount != 1 else ''})" if refcount else ""
    subject = None
    if found:
        subject = found[0].command or found[0].what
        reason = f"{module} is in use{times}: {listed(found)}; then it can be unloaded."
    elif found is not None:
        reason = (
            f"{module} is in use{times}, though no module, process or mount was found to hold it: see that every "
            "try_module_get() in it has its module_put()."
        )
    else:
        reason = (
            f"{module} is in use{times}, though by no other module: close the files, mounts and sockets that hold it, "
            "and see that every try_module_get() has its module_put()."
        )
    return Failure("in-use", reason, errno="EBUSY", subject=subject)


def _by_words(module: str, exit_code: int | None, stderr: str) -> Failure:
    """Explain it by what rmmod said."""
    text = stderr.lower()
    if "device or resource busy" in text:
        return Failure(
            "busy",
            f"{module} cannot be unloaded (EBUSY): it has no exit function, or it crashed while it was loading; add "
            "module_exit(), or restore the guest (kmlab reset).",
            errno="EBUSY",
        )
    if "operation not permitted" in text:
        return Failure("permission", f"unloading {module} was not permitted: it takes root.", errno="EPERM")
    return Failure("unload", f"{module} would not unload: {last_line(stderr) or f'rmmod ended with {exit_code}'}.")


def _users_in(stderr: str) -> list[str]:
    """kmod's own list: `rmmod: ERROR: Module base is in use by: one two`."""
    found = re.search(r"is in use by: (.+)", stderr)
    return re.findall(r"[\w-]+", found[1]) if found else []


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
