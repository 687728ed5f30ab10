"""Query an image's package archive with the host's apt in a separate root (apt.conf(5), sources.list(5)).

The sources, the keys and the list of installed packages come from the image. So apt fetches only what the image does
not have, and verifies it against the keys that the image trusts. Only the network settings come from the host's apt.
The image's apt configuration is not used, because it could run programs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline
from kmlab.host.disk import rootfs
from kmlab.host.packages import debs
from kmlab.host.process import command

_NETWORK_SETTING = re.compile(r"Acquire::(https?::|ForceIPv|Retries\b)")
"""The network settings in `apt-config dump`: proxies, certificates and so on."""
_KEYS = ("etc/apt/trusted.gpg.d", "etc/apt/keyrings", "usr/share/keyrings")
_FROM_IMAGE = (
    ("/etc/apt", "/etc"),
    ("/usr/share/keyrings", "/usr/share"),
    ("/var/lib/dpkg/status", "/var/lib/dpkg"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One source of packages: an entry of sources.list."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: tuple[str, ...] = ()
    """Paths of keyrings in the image; none means all keyrings that it trusts."""


class Archive:
    """An image's package archive. `folder` is kept, so that unchanged files are not fetched again."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder, self.root, self.arch = folder, folder / "root", arch

    @property
    def status(self) -> str:
        """Return dpkg's list of the packages that are installed in the image."""
        return (self.root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")

    def update(
        self,
        disk: Path,
        extra_suites: Sequence[str],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        """Copy the image's sources and keys, add the suites `extra_suites`, and fetch the indexes.

        `expired` accepts indexes after their Valid-Until date. Raise LabError if the archive cannot be read.
        """
        if not (self.folder / "apt.conf").exists():
            self._set_up(disk, deadline)
        sources = list(self._sources(extra_suites))
        if not sources:
            raise LabError(f"{disk}: /etc/apt of this image has no package source on the network")
        self._fetch_indexes(sources, deadline, on_line, expired=expired)

    def update_release(
        self,
        sources: Sequence[Source],
        keyrings: Sequence[Path],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        """Fetch the indexes of a release without an image of it. The host's `keyrings` verify them.

        The list of installed packages is empty: use this archive only to look packages up.
        """
        if not (self.folder / "apt.conf").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._set_up_root(deadline)
        for keyring in keyrings:
            shutil.copy(keyring, self.root / keyring.relative_to("/"))
        self.install_nothing_but("")
        self._fetch_indexes(sources, deadline, on_line, expired=expired)

    def install_nothing_but(self, stanza: str) -> None:
        """Replace the list of installed packages of a release without an image."""
        (self.root / "var/lib/dpkg/status").write_text(stanza, encoding="utf-8")

    def _fetch_indexes(
        self, sources: Sequence[Source], deadline: Deadline, on_line: Callable[[str], None], *, expired: bool
    ) -> None:
        text = "".join(self._stanza(source) for source in sources)
        (self.root / "etc/apt/sources.list.d/kmlab.sources").write_text(text, encoding="utf-8")
        try:
            until = f"Acquire::Check-Valid-Until={'false' if expired else 'true'}"
            self._apt("update", "--option", until, deadline=deadline, on_line=on_line)
        except CommandFailed as error:
            raise _archive_error(error, "cannot read the image's package archive") from None

    def indexes(self) -> Iterator[tuple[str, str]]:
        """Yield the (suite, text) of each Packages file."""
        form = "$(RELEASE) $(FILENAME)"
        output = self._apt("indextargets", "--format", form, "Created-By: Packages", deadline=Deadline(60)).output
        for line in output.splitlines():
            suite, _, name = line.partition(" ")
            if name.startswith(str(self.root)):
                yield suite, Path(name).read_text(encoding="utf-8", errors="replace")

    def fetch(
        self, packages: Sequence[str], suite: str | None, deadline: Deadline, on_line: Callable[[str], None]
    ) -> list[Path]:
        """Fetch and verify packages (`name=version`) and their missing dependencies. `suite` is that of `apt -t`."""
        archives = self.root / "var/cache/apt/archives"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        target = ["--target-release", suite] if suite else []
        try:
            self._apt("install", "--yes", "--download-only", *target, *packages, deadline=deadline, on_line=on_line)
        except CommandFailed as error:
            raise _archive_error(error, f"cannot fetch {' '.join(packages)}") from None
        return sorted(archives.glob("*.deb"))

    def _set_up(self, disk: Path, deadline: Deadline) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        image_files = self.folder / "image"
        image_files.mkdir(parents=True)
        with rootfs.opened(disk, self.folder, deadline) as filesystem:
            filesystem.copy(list(_FROM_IMAGE), image_files)
        self._set_up_root(deadline)
        for place in _KEYS:
            for name, content in self._files(place, (".gpg", ".asc", ".pgp")):
                (self.root / place / name).write_bytes(content)
        for name, content in self._files("var/lib/dpkg", ("status",)):
            (self.root / "var/lib/dpkg" / name).write_bytes(content)

    def _set_up_root(self, deadline: Deadline) -> None:
        """Make the root that apt works in, without sources and keys, and its configuration last."""
        places = ("etc/apt/sources.list.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial")
        for place in (*places, "etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/dpkg", *_KEYS):
            (self.root / place).mkdir(parents=True, exist_ok=True)
        host_settings = command.run(["apt-config", "dump"], deadline=deadline.within(30)).output.splitlines()
        settings = {
            "Dir": self.root,
            "Dir::State::status": self.root / "var/lib/dpkg/status",
            "Dir::Etc::netrc": "/etc/apt/auth.conf",
            "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "APT::Architecture": debs.NAMES[self.arch],
            "APT::Architectures": debs.NAMES[self.arch],
            # The user `_apt` would need access to the user's own folders.
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::GzipIndexes": "false",
            "APT::Update::Error-Mode": "any",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        lines += [line for line in host_settings if _NETWORK_SETTING.match(line)]
        (self.folder / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _apt(self, *words: str, deadline: Deadline, on_line: Callable[[str], None] | None = None) -> command.Completed:
        environment = {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return command.run(["apt-get", "--quiet", *words], deadline=deadline, environment=environment, on_line=on_line)

    def _files(self, place: str, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """Yield the files of a folder of the image. Follow links only within the image."""
        top = os.path.realpath(self.folder / "image")
        folder = os.path.realpath(os.path.join(top, place))
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            real = os.path.realpath(os.path.join(folder, name))
            if name.endswith(endings) and real.startswith(f"{top}/") and os.path.isfile(real):
                yield name, Path(real).read_bytes()

    def _sources(self, extra_suites: Sequence[str]) -> Iterator[Source]:
        sources: list[Source] = []
        for place in ("etc/apt", "etc/apt/sources.list.d"):
            for name, content in self._files(place, (".list", ".sources")):
                text = content.decode("utf-8", "replace")
                read = parse_sources if name.endswith(".sources") else parse_list
                sources += [source for raw in read(text) for source in self._reachable(raw)]
        yield from dict.fromkeys(sources)
        # The main suite, not its updates: the extra suites are on the same server.
        main = next((s for s in sources if "-" not in s.suite), None)
        for suite in extra_suites:
            if main is not None and suite not in {s.suite for s in sources}:
                yield Source(main.uri, suite, main.components, main.signed_by)

    def _reachable(self, source: Source) -> Iterator[Source]:
        """Yield the source if it is on the network; for a list of mirrors (apt-transport-mirror(1)), its first one."""
        if source.uri.startswith(("http://", "https://")):
            yield source
        mirror_list = re.match(r"mirror\+file:/*(etc/apt/.*)", source.uri)
        if mirror_list:
            place, _, name = mirror_list[1].rpartition("/")
            for file_name, content in self._files(place, (name,)):
                uris = re.findall(r"^(https?://\S+)", content.decode("utf-8", "replace"), re.MULTILINE)
                if file_name == name and uris:
                    yield Source(uris[0], source.suite, source.components, source.signed_by)

    def _stanza(self, source: Source) -> str:
        signed = "".join(f"Signed-By: {self.root}{path}\n" for path in source.signed_by[:1] if "/../" not in path)
        where = f"URIs: {source.uri}\nSuites: {source.suite}\nComponents: {' '.join(source.components)}\n"
        return f"Types: deb\n{where}{signed}\n"


def parse_list(text: str) -> Iterator[Source]:
    """Parse the one-line format. Use only the option `signed-by`, so that no option can trust an unsigned archive."""
    for line in text.splitlines():
        match = re.match(
            r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<rest>[^#]*)", line
        )
        if match:
            options = dict(word.partition("=")[::2] for word in shlex.split(match["options"] or ""))
            signed = tuple(part for part in options.get("signed-by", "").split(",") if part.startswith("/"))
            yield Source(match["uri"], match["suite"], tuple(match["rest"].split()), signed)


def parse_sources(text: str) -> Iterator[Source]:
    """Parse the deb822 format."""
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        fields = {
            key.lower(): words.split() for key, words in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.M)
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        signed = tuple(word for word in fields.get("signed-by", []) if word.startswith("/"))
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Source(uri, suite, tuple(fields.get("components", [])), signed)


def _archive_error(error: CommandFailed, what: str) -> LabError:
    errors = [line.partition(" ")[2] for line in error.tail.splitlines() if line.startswith(("E: ", "Err:"))]
    hint = "check that the package archive is reachable; apt's own configuration and http_proxy are used"
    unknown_key = re.search(r"NO_PUBKEY ([0-9A-F]{8,40})", error.tail)
    if unknown_key:
        hint = (
            f"the archive is signed by the key {unknown_key[1]}, which the image does not have: use a newer image "
            "(kmlab image pull, or kmlab image prune and kmlab up)"
        )
    return LabError(f"{what}: {errors[-1] if errors else error.message}", hint)
