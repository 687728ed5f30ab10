"""The archive of an image's distribution, asked by the host's apt in a root of its own (apt.conf(5), sources.list(5)).

Sources, keys and the list of installed packages are the image's: what is fetched is just what the image lacks, and
apt verifies it against the keys that the image trusts. Of the host's apt only the way to the network is taken. Nothing
of an image's configuration is, as it could name programs to run.
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

_WAY_OUT = re.compile(r"Acquire::(https?::|ForceIPv|Retries\b)")
"""Of `apt-config dump`: proxies, certificates and the like."""
_KEYS = ("etc/apt/trusted.gpg.d", "etc/apt/keyrings", "usr/share/keyrings")
_FROM_IMAGE = (
    ("/etc/apt", "/etc"),
    ("/usr/share/keyrings", "/usr/share"),
    ("/var/lib/dpkg/status", "/var/lib/dpkg"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One place where packages come from: an entry of sources.list."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: tuple[str, ...] = ()
    """Paths of keyrings in the image; none is all that it trusts."""


class Archive:
    """An image's archive as it is today. `folder` is kept: what has not changed is not fetched again."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder, self.root, self.arch = folder, folder / "root", arch

    @property
    def status(self) -> str:
        """dpkg's own list of what is installed in the image."""
        return (self.root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")

    def update(
        self,
        disk: Path,
        further: Sequence[str],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        """Take over the image's sources and keys, add the suites `further`, and fetch the indexes.

        `expired` are taken only where that is wanted.
        """
        if not (self.folder / "apt.conf").exists():
            self._set_up(disk, deadline)
        sources = list(self._sources(further))
        if not sources:
            raise LabError(
                f"{disk}: no source of packages in /etc/apt of this image that can be asked over the network"
            )
        text = "".join(self._stanza(source) for source in sources)
        (self.root / "etc/apt/sources.list.d/kmlab.sources").write_text(text, encoding="utf-8")
        try:
            until = f"Acquire::Check-Valid-Until={'false' if expired else 'true'}"
            self._apt("update", "--option", until, deadline=deadline, on_line=on_line)
        except CommandFailed as error:
            raise _plain(error, "cannot read the image's package archive") from None

    def indexes(self) -> Iterator[tuple[str, str]]:
        """(suite, text) of each Packages file."""
        form = "$(RELEASE) $(FILENAME)"
        said = self._apt("indextargets", "--format", form, "Created-By: Packages", deadline=Deadline(60)).output
        for line in said.splitlines():
            suite, _, name = line.partition(" ")
            if name.startswith(str(self.root)):
                yield suite, Path(name).read_text(encoding="utf-8", errors="replace")

    def fetch(
        self, packages: Sequence[str], suite: str | None, deadline: Deadline, on_line: Callable[[str], None]
    ) -> list[Path]:
        """The packages (`name=version`) and all that they need beyond the image, verified; `suite` as `apt -t`."""
        archives = self.root / "var/cache/apt/archives"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        target = ["--target-release", suite] if suite else []
        try:
            self._apt("install", "--yes", "--download-only", *target, *packages, deadline=deadline, on_line=on_line)
        except CommandFailed as error:
            raise _plain(error, f"cannot fetch {' '.join(packages)}") from None
        return sorted(archives.glob("*.deb"))

    def _set_up(self, disk: Path, deadline: Deadline) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        theirs = self.folder / "image"
        theirs.mkdir(parents=True)
        with rootfs.opened(disk, self.folder, deadline) as filesystem:
            filesystem.copy(list(_FROM_IMAGE), theirs)
        places = ("etc/apt/sources.list.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial")
        for place in (*places, "etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/dpkg", *_KEYS):
            (self.root / place).mkdir(parents=True, exist_ok=True)
        for place in _KEYS:
            for name, content in self._files(place, (".gpg", ".asc", ".pgp")):
                (self.root / place / name).write_bytes(content)
        for name, content in self._files("var/lib/dpkg", ("status",)):
            (self.root / "var/lib/dpkg" / name).write_bytes(content)
        way_out = command.run(["apt-config", "dump"], deadline=Deadline(30)).output.splitlines()
        settings = {
            "Dir": self.root,
            "Dir::State::status": self.root / "var/lib/dpkg/status",
            "Dir::Etc::netrc": "/etc/apt/auth.conf",
            "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "APT::Architecture": debs.NAMES[self.arch],
            "APT::Architectures": debs.NAMES[self.arch],
            # The user `_apt` would need a way into the person's own folders.
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::GzipIndexes": "false",
            "APT::Update::Error-Mode": "any",
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        lines += [line for line in way_out if _WAY_OUT.match(line)]
        (self.folder / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _apt(self, *words: str, deadline: Deadline, on_line: Callable[[str], None] | None = None) -> command.Completed:
        environment = {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return command.run(["apt-get", "--quiet", *words], deadline=deadline, environment=environment, on_line=on_line)

    def _files(self, place: str, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """Files of a folder of the image; a link counts where it stays within the image."""
        top = os.path.realpath(self.folder / "image")
        folder = os.path.realpath(os.path.join(top, place))
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            real = os.path.realpath(os.path.join(folder, name))
            if name.endswith(endings) and real.startswith(f"{top}/") and os.path.isfile(real):
                yield name, Path(real).read_bytes()

    def _sources(self, further: Sequence[str]) -> Iterator[Source]:
        found: list[Source] = []
        for place in ("etc/apt", "etc/apt/sources.list.d"):
            for name, content in self._files(place, (".list", ".sources")):
                text = content.decode("utf-8", "replace")
                read = parse_sources if name.endswith(".sources") else parse_list
                found += [source for raw in read(text) for source in self._reachable(raw)]
        yield from dict.fromkeys(found)
        # The archive itself, not its updates: a further suite lies beside those.
        main = next((s for s in found if "-" not in s.suite), None)
        for suite in further:
            if main is not None and suite not in {s.suite for s in found}:
                yield Source(main.uri, suite, main.components, main.signed_by)

    def _reachable(self, source: Source) -> Iterator[Source]:
        """The source where it lies on the network; a list of mirrors by its first one (apt-transport-mirror(1))."""
        if source.uri.startswith(("http://", "https://")):
            yield source
        listed = re.match(r"mirror\+file:/*(etc/apt/.*)", source.uri)
        if listed:
            place, _, name = listed[1].rpartition("/")
            for found, content in self._files(place, (name,)):
                uris = re.findall(r"^(https?://\S+)", content.decode("utf-8", "replace"), re.MULTILINE)
                if found == name and uris:
                    yield Source(uris[0], source.suite, source.components, source.signed_by)

    def _stanza(self, source: Source) -> str:
        signed = "".join(f"Signed-By: {self.root}{path}\n" for path in source.signed_by[:1] if "/../" not in path)
        where = f"URIs: {source.uri}\nSuites: {source.suite}\nComponents: {' '.join(source.components)}\n"
        return f"Types: deb\n{where}{signed}\n"


def parse_list(text: str) -> Iterator[Source]:
    """The one-line format. Of the options only `signed-by` is taken: none makes an unsigned archive trusted."""
    for line in text.splitlines():
        found = re.match(
            r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<rest>[^#]*)", line
        )
        if found:
            options = dict(word.partition("=")[::2] for word in shlex.split(found["options"] or ""))
            signed = tuple(part for part in options.get("signed-by", "").split(",") if part.startswith("/"))
            yield Source(found["uri"], found["suite"], tuple(found["rest"].split()), signed)


def parse_sources(text: str) -> Iterator[Source]:
    """The deb822 format."""
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


def _plain(error: CommandFailed, what: str) -> LabError:
    said = [line.partition(" ")[2] for line in error.tail.splitlines() if line.startswith(("E: ", "Err:"))]
    hint = "is the package archive reachable from here? apt's own configuration and http_proxy are used"
    return LabError(f"{what}: {said[-1] if said else error.message}", hint)
