"""Why a module did not build, in one sentence with its remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kmlab.common.events import printable
from kmlab.kernel.build.api_changes import find_api_change, find_missing_include
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.build.kbuild import Folder


def build_reason(
    log: str,
    exit_code: int | None,
    diagnostics: Sequence[Diagnostic],
    release: str,
    *,
    folder: Folder | None = None,
    built: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
) -> str | None:
    """Why make, which ended with `exit_code` (None: not in time), gave no module; None where it gave one.

    `built` are the .ko files that are there now; `sources` the module's sources, to see whether they test
    for the kernel's version.
    """
    # make only drops the circle and goes on, to an error that is about something else.
    same = re.search(r"^make\S*: Circular (?:\S*/)?(\S+)\.o <- (?:\S*/)?\1\.o dependency dropped", log, re.MULTILINE)
    if same and not built:
        name = printable(same[1], 80)
        return (
            f"a module of several files cannot have the name of one of them: rename {name}.c, and list it in {name}-y."
        )
    if exit_code == 0:
        return None if built else _nothing_built(folder, release)
    if exit_code is None:
        return "make did not end in time: see the last lines of the build log, or give it longer (--timeout)."
    link = next((pair for pair in folder.links_out if _is_named(pair[0], log)), None) if folder else None
    if link:
        path, target = (printable(text, 120) for text in link)
        return (
            f"{path} is a link to {target}, outside of the module's folder, and only that folder is sent: copy it in."
        )
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity == "error"]
    return _no_headers(log, release) or _cause(errors, release, folder, sources or {}) or _last_words(log, exit_code)


def _is_named(path: str, log: str) -> bool:
    name = re.escape(path.rsplit("/", 1)[-1])
    return (
        re.search(rf"(?:No rule to make target|No such file|cannot find).*[\s/'`]{name}|{name}: No such file", log)
        is not None
    )


def _nothing_built(folder: Folder | None, release: str) -> str:
    if folder and folder.configs and not folder.modules:
        return f"make ended well but built no .ko: {_config_remedy(folder)}"
    if folder and folder.kind == "wrapper":
        below = f"{folder.below[0]}/ has obj-m: give that folder; else " if folder.below else ""
        return (
            "make ended well but built no .ko: the first target of the Makefile does not build the module; "
            f"{below}let it call the build of {release}, or write a Kbuild file with obj-m."
        )
    if folder and folder.configs:
        return f"make ended well but built no .ko: {_config_remedy(folder)}"
    return (
        "make ended well but built no .ko: obj-m is empty (obj-y makes none), perhaps because a condition in the "
        f"Makefile does not hold for {release}; write obj-m := NAME.o for the source NAME.c."
    )


def _config_remedy(folder: Folder) -> str:
    first = folder.configs[0]
    return f"its objects depend on {first}, which this kernel does not set to m; write obj-m, or give make {first}=m."


def _no_headers(log: str, release: str) -> str | None:
    if re.search(r"\*\*\* /lib/modules/\S+/build: No such file or directory", log):
        return f"the guest has no headers for {release}: kmlab up installs them; look at what it says about them."
    if re.search(r"Kernel configuration is invalid|include/generated/autoconf\.h.*(?:missing|are missing)", log):
        return f"the headers of {release} in the guest are not complete: install them anew (kmlab up)."
    if "No space left on device" in log:
        return "the guest's disk is full: make room in it or restore it (kmlab reset)."
    if re.search(r"(?:gcc|clang|cc1)\S*: .*(?:Killed|terminated) signal|internal compiler error: Killed", log):
        return "the compiler was killed for want of memory: give the guest more (memory: in lab.yaml)."
    if "FAILED to sort BTF" in log:
        # Seen with Linux 7.3: scripts/Makefile.modfinal lets resolve_btfids sort what pahole wrote.
        return (
            f"the tools of {release} could not sort the module's type information (BTF), as happens to one without a "
            "type of its own: give it one, such as a struct."
        )
    missing = re.search(
        r"(?m)^(?:make(?:\[\d+\])?|(?:/bin/)?sh: \d+): (\S+): (?:No such file|not found|Command not)", log
    )
    if missing:
        return f"{printable(missing[1], 80)} is not in the guest: add its package to the recipe (guests/)."
    return None


def _cause(errors: Sequence[Diagnostic], release: str, folder: Folder | None, sources: Mapping[str, str]) -> str | None:
    # What is behind an error says more than the error, so the first that has a known cause comes first.
    for error in errors:
        change = find_api_change("\n".join((error.message, *error.notes)), release)
        if change:
            return f"{_place(error)}{change}{_version_test(sources)}."
    for error in errors:
        reason = _known(error, errors, release, folder)
        if reason:
            return reason
    if not errors:
        return None
    first = errors[0]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{_place(first)}{printable(first.message, 300)}{more}: mend it there and run again."


def _known(error: Diagnostic, errors: Sequence[Diagnostic], release: str, folder: Folder | None) -> str | None:
    place, message = _place(error), error.message
    for pattern, template in _KNOWN:
        found = re.search(pattern, message)
        if found:
            words = [printable(word or "", 120) for word in found.groups()]
            return place + template.format(*words, release=release)
    undefined = [name[1] for e in errors if (name := re.fullmatch(r'"(\S+)" undefined!', e.message))]
    if undefined and message.endswith("undefined!"):
        more = f" (and {len(undefined) - 1} more)" if len(undefined) > 1 else ""
        return (
            f"{undefined[0]}(){more} is not exported by {release} nor by a module that make knows of: use what the "
            "kernel exports, or give KBUILD_EXTRA_SYMBOLS the Module.symvers of the module that has it."
        )
    header = find_missing_include(message)
    if header:
        return f"{place}{printable(message, 200)}: include <{header}>."
    return _missing_file(error, release, folder)


def _missing_file(error: Diagnostic, release: str, folder: Folder | None) -> str | None:
    header = re.search(r"^(\S+\.h): No such file|'(\S+\.h)' file not found", error.message)
    if header:
        name = printable(header[1] or header[2], 120)
        if _LIBC.fullmatch(name):
            return (
                f"{_place(error)}{name} is of the C library, which there is none of in the kernel: include what "
                "<linux/…> has instead (<linux/printk.h> for printf(), <linux/slab.h> for malloc())."
            )
        if folder and folder.extra_cflags:
            return f"{_place(error)}{name} is not found: since Linux 6.15 EXTRA_CFLAGS is ignored; use ccflags-y."
        if name.startswith(("linux/", "asm/", "uapi/", "net/", "crypto/", "media/", "scsi/", "sound/", "drm/")):
            return f"{_place(error)}{release} has no {name}: see where that kernel declares what you use of it."
        return f"{_place(error)}{name} is not found: it is missing, or wants ccflags-y += -I$(src)/FOLDER."
    rule = re.search(r"No rule to make target [`'](\S+)'", error.message)
    if rule:
        target = printable(rule[1], 200)
        if target == "Makefile" and folder and folder.has_makefile and folder.file is None:
            return "kbuild reads Kbuild or Makefile, and by no other spelling: rename the one in the module's folder."
        if folder and folder.old_subdirs:
            return "the Makefile calls the kernel's make with SUBDIRS=, which is gone since Linux 5.3: write M= there."
        source = re.sub(r"\.o$", ".c", target.rsplit("/", 1)[-1])
        wanted = f"{source} is not in the folder" if target.endswith(".o") else "nothing says how to make it"
        if folder and source in folder.sources:
            wanted = f"{source} is there, but make looks for it elsewhere"
        return f"make has no rule for {target.rsplit('/', 1)[-1]}: {wanted}; correct the name in obj-m or in NAME-y."
    return None


_LIBC = re.compile(
    r"(?:assert|ctype|errno|fcntl|float|inttypes|locale|math|memory|poll|pthread|setjmp|signal|stdint|stdio|stdlib|"
    r"string|strings|time|unistd|wchar|sys/\w+|netinet/\w+|arpa/\w+)\.h"
)

# What a message means, and what to do; {0}, {1} are the groups of the pattern.
_KNOWN = (
    (
        r"^missing MODULE_LICENSE\(\)",
        'the module has no licence, without which it does not build: add MODULE_LICENSE("GPL"), or your own.',
    ),
    # Since Linux 7, modpost names the module before its message and not in it.
    (
        r"GPL-incompatible module (?:\S+ )?uses GPL-only symbol '(\S+)'",
        '{0}() is for GPL modules only, which this is not: use MODULE_LICENSE("GPL") if that is true, else do without.',
    ),
    (
        r"module (?:\S+ )?uses symbol '?(\S+?)'? from namespace '?(\S+?)'?, but does not import it",
        '{0}() is of the namespace {1}: add MODULE_IMPORT_NS({1}), from Linux 6.13 on MODULE_IMPORT_NS("{1}").',
    ),
    (
        r"multiple definition of [`'](\S+)'",
        "{0} is defined twice in files of one module: make all but one of them static, or rename it.",
    ),
    (
        r'^"sys_call_table" undefined!',
        "sys_call_table is not exported to modules: watch system calls with a kprobe or a tracepoint.",
    ),
    (
        r"invalid storage class for function [`'\u2018](\w+)['\u2019]",
        "{0}() begins inside of another function: a brace before it is never closed; add the }} that is missing.",
    ),
    (
        r"expected declaration or statement at end of input",
        "the file ends inside of a function: a brace is never closed; add the }} that is missing.",
    ),
    (
        r"SSE register (?:return|argument) with SSE disabled|mgeneral-regs-only.* incompatible",
        "the kernel computes without floating point: use integers in place of float and double.",
    ),
    (
        r"call to '__(write|read)_overflow\w*' declared with attribute",
        "a {0} here goes beyond the object: see what was allocated (sizeof(*p), not sizeof(p)) and what goes in.",
    ),
    (r"missing separator", "a command of the Makefile does not begin with a tab: put one before it."),
    (r"[`'\"](\S+?)['\"] exported twice", "{0} is exported twice, here and elsewhere: rename it."),
    (r"module name is too long", "the module's name is too long: the kernel takes 55 characters."),
    (
        r"unrecognized command-line option [\u2018'](\S+)[\u2019']",
        "the compiler does not know {0}: the kernel {release} was built by another one, or the Makefile asks for it.",
    ),
)


def _place(error: Diagnostic) -> str:
    if error.file is None or error.line is None:
        return ""
    return f"{printable(error.file, 200)}:{error.line}: "


def _version_test(sources: Mapping[str, str]) -> str:
    """Stable releases carry backports of such changes, so a test of the version can be right and still not
    hold.
    """
    if any("LINUX_VERSION_CODE" in text or "KERNEL_VERSION(" in text for text in sources.values()):
        return "; the sources test LINUX_VERSION_CODE, which misses changes that a distribution backported"
    return ""


def _last_words(log: str, exit_code: int) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("make")]
    said = f": {printable(lines[-1], 200)}" if lines else ""
    return f"make ended with code {exit_code}{said}; the build log has the rest."
