"""Explain why a module did not build, in one sentence with its remedy."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmlab.common.events import printable
from kmlab.kernel.build.api_changes import find_api_change, find_missing_include, find_version_tests, parse_release
from kmlab.kernel.build.build_tools import package_of_header, package_of_program
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.build.kbuild import Folder
from kmlab.kernel.build.kernel_config import is_off, option_of, remedy


def build_reason(
    log: str,
    exit_code: int | None,
    diagnostics: Sequence[Diagnostic],
    release: str,
    *,
    folder: Folder | None = None,
    built: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
) -> str | None:
    """Explain why make, which ended with `exit_code` (None: not in time), gave no module; None where it gave one.

    `built` are the .ko files that are there now; `sources` the module's sources, to see which versions of the kernel
    they test for; `config` the options of the kernel that it was built for, where they are known.
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
        return f"{path} is a link to {target}, outside of what is sent: {_send_more(folder)}."
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity == "error"]
    # A program that is missing stops nothing where something else is what make ended at.
    programs = [error for error in errors if error.file is None and _PROGRAM.search(error.message)]
    others = [error for error in errors if error not in programs]
    build = _Build(log, release, folder, sources or {}, config)
    return (
        _environment(log, release)
        or _rust(build)
        or _cause(others, build)
        or _missing_program(programs, build)
        or _plain(others, build)
        or _last_words(log, exit_code)
    )


def wants_config(log: str) -> bool:
    """Tell whether the kernel's .config may help to explain why make failed."""
    return "undefined!" in log or "RUSTC" in log or "rustc" in log or "unrecognized command" in log


@dataclass(frozen=True, slots=True)
class _Build:
    """What is known of a build that failed."""

    log: str
    release: str
    folder: Folder | None
    sources: Mapping[str, str]
    config: Mapping[str, str] | None

    @property
    def tested(self) -> set[tuple[int, int]]:
        """The versions of the kernel that the sources test for."""
        return {version for text in self.sources.values() for version in find_version_tests(text)}

    @property
    def compiler(self) -> str | None:
        """The compiler that the kernel was built by, if it is another one than this; Makefile warns of that."""
        found = re.search(
            r"^[ \t]*The kernel was built by: (.{1,200})\n[ \t]*You are using:[ \t]+(.{1,200})", self.log, re.MULTILINE
        )
        if found:
            ours, theirs = ("clang" in found[number] for number in (2, 1))
            return None if ours == theirs else "clang" if theirs else "gcc"
        return "clang" if self.config is not None and self.config.get("CC_IS_CLANG") == "y" else None


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


def _environment(log: str, release: str) -> str | None:
    """Find what is wrong with the guest and not with the module."""
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
    return None


def _rust(build: _Build) -> str | None:
    """Explain why a module in Rust does not build, which is mostly that the kernel takes none."""
    if not re.search(
        r"^[ \t]+RUSTC\b|\brustc: (?:not found|No such file|Command not)|rust/target\.json", build.log, re.MULTILINE
    ):
        return None
    if build.config is not None and build.config.get("RUST") == "y":
        other = re.search(r"error\[E0514\]|found crate `\w+` compiled by an incompatible version of rustc", build.log)
        wanted = build.config.get("RUSTC_VERSION_TEXT", "").strip('"')
        if not other and not re.search(r"\brustc: (?:not found|No such file|Command not)", build.log):
            return None
        return (
            f"the kernel {build.release} wants its modules in Rust built by its own compiler"
            f"{f', {printable(wanted, 80)}' if wanted else ''}: add that to the guest's packages (packages: in "
            f"lab.yaml)."
        )
    if build.config is None and not re.search(
        r"rust/target\.json|can't find crate for `(?:core|kernel)`|\brustc: (?:not found|No such file|Command not)",
        build.log,
    ):
        return None
    return (
        f"the kernel {build.release} is built without CONFIG_RUST, so it takes no module in Rust, and no package "
        f"changes "
        "that: take a kernel that has it, such as one of your own (kernel: in lab.yaml)."
    )


_PROGRAM = re.compile(r"^\S+: (?:not found|No such file or directory|Command not found|Permission denied)$")


def _missing_program(programs: Sequence[Diagnostic], build: _Build) -> str | None:
    """Name what the build called and did not find."""
    if not programs:
        return None
    program = printable(programs[-1].message.split(": ")[0], 120)
    name = program.rsplit("/", 1)[-1]
    if program.startswith("/"):
        return f"the headers of {build.release} in the guest are not complete, {program} is not there: install them "
        "anew (kmlab up)."
    if re.fullmatch(r"(?:\S+-)?(?:gcc|clang|cc|ld\.lld)(?:-\d+(?:\.\d+)*)?", name):
        return (
            f"the headers of {build.release} want the compiler {name}, with which that kernel was built, and the "
            f"guest lacks "
            f"it: add {name} to the guest's packages (packages: in lab.yaml)."
        )
    package = package_of_program(program)
    if package:
        return (
            f"the build calls {program}, which its toolchain does not have: add its package, `packages: [{package}]`, "
            "to the module in lab.yaml."
        )
    return (
        f"the build calls {program}, which its toolchain does not have: add the package that has it to the module's "
        "`packages` in lab.yaml."
    )


def _cause(errors: Sequence[Diagnostic], build: _Build) -> str | None:
    # What is behind an error says more than the error, so the first that has a known cause comes first.
    looked_at = errors[:_MOST_ERRORS]
    for error in looked_at:
        change = find_api_change("\n".join((error.message, *error.notes[:_MOST_NOTES])), build.release, build.tested)
        if change:
            return f"{_place(error)}{change}{_version_test(build.sources)}."
    return next((reason for error in looked_at if (reason := _known(error, errors, build))), None)


def _plain(errors: Sequence[Diagnostic], build: _Build) -> str | None:
    """Give the first error as it is, where nothing is known of its cause."""
    if not errors:
        return None
    if build.compiler == "clang":
        return _other_compiler(build)
    first = errors[0]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{_place(first)}{printable(first.message, 300)}{more}: mend it there and run again."


def _known(error: Diagnostic, errors: Sequence[Diagnostic], build: _Build) -> str | None:
    place, message, release = _place(error), error.message, build.release
    if "unrecognized" in message and build.compiler:
        return _other_compiler(build)
    for pattern, template in _KNOWN:
        found = re.search(pattern, message)
        if found:
            words = [printable(word or "", 120) for word in found.groups()]
            return place + template.format(*words, release=release)
    return (
        _objtool(error)
        or _undefined(error, errors, build)
        or _forgotten_include(error)
        or _missing_file(error, build)
        or _callback(error, release)
    )


def _other_compiler(build: _Build) -> str:
    if build.compiler == "clang":
        return (
            f"the kernel {build.release} was built by clang, whose flags gcc does not know: build the module with "
            f"clang, too "
            "(make LLVM=1; in the Makefile: export LLVM := 1), and add clang, lld and llvm to the guest's packages "
            "(packages: "
            "in lab.yaml)."
        )
    return (
        f"the kernel {build.release} was built by gcc, whose flags clang does not know: leave out LLVM=1 and CC=clang."
    )


def _objtool(error: Diagnostic) -> str | None:
    found = re.match(r"objtool: (?:(?P<function>[.\w]+)\+0x[0-9a-f]+: )?(?P<what>.+)", error.message)
    if not found or error.file is None:
        return None
    file = printable(error.file, 200)
    function = f"{printable(found['function'], 120)}(): " if found["function"] else ""
    # Since Linux commit "objtool: Add CONFIG_OBJTOOL_WERROR" in v6.15.
    return (
        f"{file}: {function}{printable(found['what'], 200)}; objtool's complaints are errors since Linux 6.15 where "
        "CONFIG_OBJTOOL_WERROR=y: mend the function, or mark the object with OBJECT_FILES_NON_STANDARD_"
        f"{file.rsplit('/', 1)[-1]} := y."
    )


def _undefined(error: Diagnostic, errors: Sequence[Diagnostic], build: _Build) -> str | None:
    names = [name[1] for e in errors if (name := re.fullmatch(r'"(\S+)" undefined!', e.message))]
    if not names or not error.message.endswith("undefined!"):
        return None
    names = list(dict.fromkeys(names))
    # modpost says the first ten, and how many it does not say.
    hidden = sum(int(number) for number in re.findall(r"suppressed (\d{1,9}) unresolved symbol", build.log))
    others = len(names) - 1 + hidden
    more = f" (and {others} more)" if others else ""
    for symbol in names:
        option = option_of(symbol)
        if option and is_off(option, build.config, build.release):
            return (
                f"{printable(symbol, 120)}(){more} belongs to CONFIG_{option}, which the kernel {build.release} is "
                f"built without: {remedy(option, build.release)}."
            )
    return (
        f"{printable(names[0], 120)}(){more} is not exported by {build.release} nor by a module that make knows of: "
        f"use what "
        "the kernel exports, or give KBUILD_EXTRA_SYMBOLS the Module.symvers of the module that has it."
    )


def _forgotten_include(error: Diagnostic) -> str | None:
    header = find_missing_include(error.message)
    return f"{_place(error)}{printable(error.message, 200)}: include <{header}>." if header else None


def _callback(error: Diagnostic, release: str) -> str | None:
    """Explain a function that does not fit the place that it is put in."""
    found = re.search(
        r"(?:initialization of|assignment to) [\u2018'`](?P<wanted>[^\u2019']{1,400})[\u2019'].{0,600}? from "
        r"incompatible pointer "
        r"type [\u2018'`](?P<given>[^\u2019']{1,400})[\u2019']",
        error.message,
    ) or re.search(
        r"incompatible function pointer types [a-z ]{1,40}'(?P<wanted>[^']{1,400})'.{0,600}? type "
        r"'(?P<given>[^']{1,400})'",
        error.message,
    )
    if not found:
        return None
    near = next(
        (n for note in error.notes if (n := re.search(r"near initialization for [\u2018'`](\S+?)[\u2019']\)", note))),
        None,
    )
    member = printable(near[1], 120) if near else "this place"
    return (
        f"{_place(error)}{member} is of another type in {release}: it takes `{printable(found['wanted'], 200)}`, "
        f"and the "
        f"module has `{printable(found['given'], 200)}`: give the function the type that this kernel wants."
    )


def _missing_file(error: Diagnostic, build: _Build) -> str | None:
    folder, release = build.folder, build.release
    header = re.search(r"^(\S+\.h): No such file|'(\S+\.h)' file not found", error.message)
    if header:
        return _place(error) + _missing_header(printable(header[1] or header[2], 120), error, build)
    rule = re.search(r"No rule to make target [`'](\S+)'", error.message)
    if rule:
        target = printable(rule[1], 200)
        if re.match(r"(?:/usr/src/\S+/)?(?:scripts|tools)/", target) or re.search(r"\.asn1\.[ch]$", target):
            target = "scripts/asn1_compiler" if ".asn1." in target else target
            return (
                f"the headers of {release} come without {target}, a program that is built with the kernel: let the "
                f"sources "
                "hold what it would make, as a build in the kernel's own tree leaves it."
            )
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


def _send_more(folder: Folder | None) -> str:
    """Return the remedy for what is not sent."""
    what = "a larger one" if folder and folder.above else "one that holds both"
    return f"name {what} (root: in lab.yaml, or --root), or copy in what is missing"


def _missing_header(name: str, error: Diagnostic, build: _Build) -> str:
    """Explain why a header is not found, and what to do; the end of a sentence that begins with the place."""
    folder, release = build.folder, build.release
    package = package_of_header(name)
    if package:
        return f"{name} is of {package}: add `packages: [{package}]` to the module in lab.yaml."
    if _LIBC.fullmatch(name):
        return (
            f"{name} is of the C library, which there is none of in the kernel: include what "
            "<linux/…> has instead (<linux/printk.h> for printf(), <linux/slab.h> for malloc())."
        )
    if name.startswith(("linux/", "asm/", "uapi/", "net/", "crypto/", "media/", "scsi/", "sound/", "drm/")):
        return f"{release} has no {name}: see where that kernel declares what you use of it."
    below = posixpath.normpath(posixpath.join(posixpath.dirname(error.file or ""), name))
    if below.startswith("../") and not posixpath.isabs(error.file or ""):
        where = f" ({folder.not_sent})" if folder and folder.not_sent else ""
        if below.count("../") > (folder.above if folder else 0):
            return (
                f"{name} lies outside of the module's folder, and only that folder is sent{where}: "
                f"{_send_more(folder)}."
            )
    if folder and name.rsplit("/", 1)[-1] not in folder.sources:
        outside = ", ".join(printable(path, 120) for path in folder.includes_out)
        if outside and not folder.above:
            where = f" ({folder.not_sent})" if folder.not_sent else ""
            return (
                f"{name} is not found: {outside} lies outside of the module's folder, and only that folder is "
                f"sent{where}: {_send_more(folder)}."
            )
    version = parse_release(release)
    if folder and folder.extra_cflags and version is not None and version >= (6, 15):
        # Since Linux commit "kbuild: remove EXTRA_*FLAGS support" in v6.15.
        return f"{name} is not found: since Linux 6.15 EXTRA_CFLAGS is ignored; use ccflags-y."
    return f"{name} is not found: it is missing, or wants ccflags-y += -I$(src)/FOLDER."


_MOST_ERRORS = 100
"""Errors that are looked at for a cause; gcc's first ones are what the others come of."""
_MOST_NOTES = 20
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
    """Return what to add if the sources test the kernel's version; empty if they do not.

    Stable releases have backports of such changes, so a test of the version can be right and still not hold.
    """
    if any("LINUX_VERSION_CODE" in text or "KERNEL_VERSION(" in text for text in sources.values()):
        return "; the sources test LINUX_VERSION_CODE, which misses changes that a distribution backported"
    return ""


def _last_words(log: str, exit_code: int) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("make")]
    said = f": {printable(lines[-1], 200)}" if lines else ""
    return f"make ended with code {exit_code}{said}; the build log has the rest."
