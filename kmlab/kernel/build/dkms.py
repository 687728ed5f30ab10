"""What a dkms.conf says, and what dkms would do with it; follows dkms(8) and dkms itself, 3.x."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmlab.common.events import printable

FILE = "dkms.conf"
_LISTS = (
    *("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION", "MAKE", "MAKE_MATCH"),
    *("PATCH", "PATCH_MATCH", "BUILD_DEPENDS", "BUILD_EXCLUSIVE_KERNEL", "BUILD_EXCLUSIVE_KERNEL_MIN"),
    *("BUILD_EXCLUSIVE_KERNEL_MAX", "BUILD_EXCLUSIVE_ARCH", "BUILD_EXCLUSIVE_CONFIG"),
    *("PACKAGE_NAME", "PACKAGE_VERSION", "PRE_BUILD", "POST_BUILD", "OBSOLETE_BY"),
)
_MARK = "kmlab-dkms"
READ_CONF = f"""\
conf=$PWD/{FILE} kernelver=$1 arch=$2 dkms_tree=$3 source_tree=$4
kernel_source_dir=/lib/modules/$kernelver/build
kernel_config=$kernel_source_dir/.config
# Twice, as dkms does: to know its name, and then to know all.
eval "$(. "$conf" > /dev/null 2>&1; declare -p PACKAGE_NAME PACKAGE_VERSION 2> /dev/null)"
module=$PACKAGE_NAME module_version=$PACKAGE_VERSION
unset {" ".join(_LISTS)}
. "$conf" || echo "{FILE} ended with $?"
[[ $PACKAGE_VERSION ]] || PACKAGE_VERSION=0
for name in {" ".join(_LISTS)}; do
	declare -n list=$name
	for index in "${{!list[@]}}"; do
		printf '{_MARK} %s %s %s\\n' "$name" "$index" "$(printf %s "${{list[index]}}" | od -An -v -tx1 | tr -d ' \\n')"
	done
done
"""
"""A script for bash: reads the dkms.conf in the current folder, which is itself a script, and says what it set."""
BUILD = """\
set -e
source=$PWD build=$1 kernelver=$2 arch=$3 dkms_tree=$4 source_tree=$5
module=$6 module_version=$7 command=$8 pre_build=$9
shift 9
kernel_source_dir=/lib/modules/$kernelver/build
export kernelver arch dkms_tree source_tree module module_version kernel_source_dir
cc=$(sed -n 's|^CONFIG_CC_VERSION_TEXT="*\\([^" ]*\\) .*|\\1|p' "$kernel_source_dir/.config" 2> /dev/null || :)
if command -v "${cc:-none}" > /dev/null; then export CC=$cc KERNEL_CC=$cc; fi
rm -rf "$build"
mkdir -p "$build" "$source_tree"
tar -C "$source" --exclude=./.kmlab -cf - . | tar -C "$build" -xf -
ln -sfn "$build" "$dkms_tree/$module/$module_version/source"
ln -sfn "$source" "$source_tree/$module-$module_version"
cd "$build"
for patch; do
	echo "patch -p1 < patches/$patch"
	patch -p1 < "patches/$patch"
done
if [ "$pre_build" ]; then
	echo "PRE_BUILD: $pre_build"
	if [ -x "${pre_build%% *}" ]; then
		eval "./$pre_build"
	elif [ -e "${pre_build%% *}" ]; then
		echo "dkms does not run it: ${pre_build%% *} is not executable"
	fi
fi
echo "$command"
eval "$command"
"""
"""A script for bash: builds as dkms does, in a copy of the current folder."""


@dataclass(frozen=True, slots=True)
class BuiltModule:
    """One of the modules that a dkms.conf promises."""

    path: str
    """The .ko that make leaves, from the folder of the build."""
    index: int


@dataclass(frozen=True, slots=True)
class DkmsConf:
    """A dkms.conf for one kernel."""

    values: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """By name and index, as bash's arrays; a plain variable has index 0."""

    def get(self, name: str, index: int = 0) -> str:
        """Return a value; empty if it is not set."""
        return self.values.get((name, index), "")

    def indexes(self, *names: str) -> list[int]:
        """Return the indexes at which any of these arrays has a value."""
        return sorted({index for name, index in self.values if name in names})

    @property
    def name(self) -> str:
        """Return the name of the package."""
        return self.get("PACKAGE_NAME")

    @property
    def version(self) -> str:
        """Return the version of the package."""
        return self.get("PACKAGE_VERSION")

    def mistake(self) -> str | None:
        """Return what dkms has against the file: a sentence."""
        if not self.name:
            return f"{FILE} names no PACKAGE_NAME, which dkms needs"
        if not all(map(_NAME.fullmatch, (self.name, self.version))):
            return f"{FILE} has a PACKAGE_NAME or PACKAGE_VERSION that cannot be part of a path"
        for module in self.modules():
            place = self.get("DEST_MODULE_LOCATION", module.index)
            if not place.startswith(("/kernel", "/updates", "/extra")):
                return (
                    f"{FILE}: DEST_MODULE_LOCATION[{module.index}] is `{printable(place, 80)}`; dkms wants it to begin "
                    "with /kernel, /updates or /extra"
                )
            if module.path.startswith(("../", "/")):
                return f"{FILE}: BUILT_MODULE_LOCATION[{module.index}] lies outside of the folder"
        names = [posixpath.basename(module.path) for module in self.modules()]
        ended = next((name for name in names if name.endswith((".ko.ko", ".o.ko"))), None)
        return f"{FILE}: BUILT_MODULE_NAME ends in .ko or .o, which dkms refuses" if ended else None

    def modules(self) -> list[BuiltModule]:
        """Return the modules that are built, in the file's order."""
        indexes = self.indexes("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION")
        count = max(indexes, default=-1) + 1
        found = []
        for index in range(count):
            name = self.get("BUILT_MODULE_NAME", index) or (self.name if count == 1 else "")
            if name:
                path = posixpath.normpath(posixpath.join(self.get("BUILT_MODULE_LOCATION", index), f"{name}.ko"))
                found.append(BuiltModule(path, index))
        return found

    def make_command(self, release: str, build: str, jobs: int, clang: bool) -> str:
        """Return the command that builds: bash runs it."""
        command = "" if self.get("MAKE_MATCH") else self.get("MAKE")
        for index in self.indexes("MAKE"):
            match = self.get("MAKE_MATCH", index)
            command = self.get("MAKE", index) if match and _matches(match, release) else command
        command = command or f"make -C /lib/modules/{release}/build M={build}"
        command += " LLVM=1" if clang else ""
        return re.sub(r"^make", f"make -j{jobs} KERNELRELEASE={release}", command)

    def patches(self, release: str) -> list[str]:
        """Return the patches for a kernel, in their order."""
        wanted = [index for index in self.indexes("PATCH") if self.get("PATCH", index)]
        matches = ((index, self.get("PATCH_MATCH", index)) for index in wanted)
        return [self.get("PATCH", index) for index, match in matches if not match or _matches(match, release)]

    def depends(self) -> list[str]:
        """Return the other DKMS packages that must be installed first."""
        return [self.get("BUILD_DEPENDS", index) for index in self.indexes("BUILD_DEPENDS")]

    def excluded(self, release: str, arch: str, config: Mapping[str, str]) -> str | None:
        """Return why dkms builds none of the modules for a kernel: a sentence. None if it builds some."""
        reasons = [self.exclusion(module.index, release, arch, config) for module in self.modules()]
        # Without any module dkms builds, if only to run the scripts.
        return reasons[0] if reasons and all(reasons) else None

    def exclusion(self, index: int, release: str, arch: str, config: Mapping[str, str]) -> str | None:
        """Return which BUILD_EXCLUSIVE_ directive rules out one module: a sentence."""
        for place in dict.fromkeys((0, index)):
            why = self._exclusion(place, release, arch, config)
            if why:
                return why
        return None

    def _exclusion(self, index: int, release: str, arch: str, config: Mapping[str, str]) -> str | None:
        def given(what: str) -> str:
            return self.get(f"BUILD_EXCLUSIVE_{what}", index)

        kernel, low, high, machine = given("KERNEL"), given("KERNEL_MIN"), given("KERNEL_MAX"), given("ARCH")
        high = high or (self.get("OBSOLETE_BY") if not self.indexes("BUILD_EXCLUSIVE_KERNEL_MAX") else "")
        if kernel and not _matches(kernel, release):
            return f"{FILE} is for kernels that match `{printable(kernel, 120)}` (BUILD_EXCLUSIVE_KERNEL)"
        if low and version_key(release) < version_key(low):
            return f"{FILE} is for Linux {printable(low, 40)} and newer (BUILD_EXCLUSIVE_KERNEL_MIN)"
        if high and version_key(release) > version_key(high):
            return f"{FILE} is for Linux {printable(high, 40)} and older (BUILD_EXCLUSIVE_KERNEL_MAX)"
        if machine and not _matches(machine, arch):
            return f"{FILE} is for machines that match `{printable(machine, 80)}` (BUILD_EXCLUSIVE_ARCH)"
        for option in given("CONFIG").split():
            name, unwanted = option.removeprefix("!").removeprefix("CONFIG_"), option.startswith("!")
            if config and (config.get(name, "n") in ("y", "m")) == unwanted:
                what = "without" if unwanted else "with"
                return f"{FILE} is for kernels {what} CONFIG_{printable(name, 80)} (BUILD_EXCLUSIVE_CONFIG)"
        return None


_NAME = re.compile(r"[A-Za-z0-9_.+~:-]{1,100}")


def parse_conf(output: str) -> DkmsConf:
    """Return what the script READ_CONF said."""
    values: dict[tuple[str, int], str] = {}
    for name, index, value in re.findall(
        rf"^{_MARK} ([A-Z_]{{1,40}}) ([0-9]{{1,4}}) ((?:[0-9a-f]{{2}})*)$", output, re.MULTILINE
    ):
        if name in _LISTS:
            values[name, int(index)] = bytes.fromhex(value).decode("utf-8", "replace")
    if re.fullmatch(r"#\w+#|@\w+@", values.get(("PACKAGE_VERSION", 0), "")):
        # What a package's build fills in.
        values["PACKAGE_VERSION", 0] = "0"
    return DkmsConf(values)


def version_key(text: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts versions as dkms's own VER() does: numbers by value, then words."""
    words: Sequence[str] = re.findall(r"[0-9]+|[A-Za-z]+", text)
    return tuple((int(word), "") if word.isdigit() else (-1, word) for word in words)


def _matches(expression: str, text: str) -> bool:
    """Return whether bash's =~ would match; an expression that Python cannot read matches, so that nothing is lost."""
    try:
        return re.search(_POSIX.sub(lambda m: _CLASSES[m[1]], expression), text) is not None
    except (re.error, RecursionError, OverflowError):
        return True


_CLASSES = {"digit": "0-9", "alpha": "A-Za-z", "alnum": "A-Za-z0-9", "space": r"\s"}
_POSIX = re.compile(r"\[:(digit|alpha|alnum|space):\]")
