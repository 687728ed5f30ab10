"""Fake doors: a Host without a world, so that the story is told without libvirt, QEMU's guests or ssh.

    with World(FakeModule("hello", load=Act(kernel=("Hello, world.",)))) as world:
        result = run.run(world.host, lab, lab.guest("debian"), module, run.Options(), silent)

Files, locks, qemu-img and the console are real. In the place of each QEMU a program waits that bears its name.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import struct
import tarfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmlab import testing_keys
from kmlab.errors import GuestUnreachable, HypervisorError, KmlabError
from kmlab.events import Deadline
from kmlab.guest import WORKSHOP
from kmlab.host import Host, hypervisor
from kmlab.host.accel import Acceleration
from kmlab.host.apt import Archive
from kmlab.host.command import Conversation
from kmlab.host.command import run as run_program
from kmlab.host.hypervisor import Hypervisor
from kmlab.host.mmdebstrap import PackageImage
from kmlab.host.ssh import Answer, Shell
from kmlab.kernel import guestkeys, sign
from kmlab.kernel.loaded import look
from kmlab.testing_packages import package_file

RELEASE = "6.1.0-0-fake-amd64"
TEXT = 0xFFFFFFFFC0261000
"""Where the code of every module lies."""
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What comes of one command in the guest."""

    code: int = 0
    output: str = ""
    error: str = ""
    """What it says on stderr."""
    kernel: tuple[str, ...] = ()
    """What the kernel says meanwhile: `text`, or `<3>text` with a level."""
    taint: int = 0
    """Bits that it adds to the kernel's taint."""
    ends: str = "returns"
    """returns; hangs: never, while the connection stays; lost: the guest is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModule:
    """How a module behaves in every guest of a World."""

    name: str
    """Of its folder in the guest, and of its only .ko where `images` does not say more."""
    images: dict[str, bytes] = field(default_factory=dict)
    """The .ko files that a build makes, by their path."""
    build: Act = Act()
    load: Act = Act(taint=1 << 12)
    exercise: Act = Act()
    unload: Act = Act()

    def built(self) -> dict[str, bytes]:
        return self.images or {f"{self.name}.ko": module_image(self.name)}


class World:
    """All that the doors open on. Guests end with the `with` block."""

    def __init__(self, *modules: FakeModule, release: str = RELEASE, accel: str = "kvm") -> None:
        self.modules = {module.name: module for module in modules}
        self.release = release
        self.acceleration = Acceleration(accel, "this world is a fake")
        self.asked: list[str] = []
        """What was asked of the doors, in order: build-image, start, save, restore, stop."""
        self.lines: list[str] = []
        """Every line that a guest's shell was given."""
        self.refusals: dict[str, KmlabError] = {}
        """What a door raises instead, by what is asked; `shell` is ssh, `agent` the channel."""
        self.seeds: list[bytes] = []
        """Of every base that was baked."""
        self.first_boot: tuple[str, ...] = ()
        """What the console of a first boot says, instead of what it does when a base is well baked."""
        self.indexes: dict[str, str] = {}
        """The archive of every image: a Packages file for each suite."""
        self.holders = b""
        """What a guest says to the question of who holds a module, in the words of kernel/holders."""
        self.taints_unsigned = False
        """Whether a kernel that asks for no signature sets its taint E over a module, as most do."""
        self.monitor: dict[str, str] = {}
        """What QEMU's monitor says, by what it is asked; nothing to the rest."""
        self.silent = False
        """Whether firmware and kernel of a guest that starts say nothing."""
        self.machines: dict[tuple[Path, str], Machine] = {}
        self._next_port = 40000

    @property
    def host(self) -> Host:
        def accelerate(wanted: str, arch: str) -> Acceleration:
            return self.acceleration

        return Host(
            self._open,
            self._connect,
            self._reach,
            accelerate,
            self._build_image,
            lambda folder, arch: FakeArchive(self, folder, arch),
        )

    def ask(self, what: str) -> None:
        """Note it, and refuse where that was wanted."""
        self.asked.append(what)
        if what in self.refusals:
            raise self.refusals[what]

    def new_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.end()

    @contextlib.contextmanager
    def _open(self, uri: str, root: Path, deadline: Deadline) -> Iterator[Hypervisor]:
        yield FakeHypervisor(self, root)

    @contextlib.contextmanager
    def _connect(self, port: int, host_key: str, identity: Path, deadline: Deadline) -> Iterator[Shell]:
        if "shell" in self.refusals:
            raise self.refusals["shell"]
        found = [m for m in list(self.machines.values()) if m.port == port and m.runs]
        if not found or host_key != HOST_KEY:
            raise GuestUnreachable(f"no answer on ssh (127.0.0.1:{port}): nothing listens")
        yield FakeShell(self, found[0])

    @contextlib.contextmanager
    def _reach(self, path: Path, deadline: Deadline) -> Iterator[Shell]:
        if "agent" in self.refusals:
            raise self.refusals["agent"]
        found = [m for m in list(self.machines.values()) if m.channel == path and m.runs]
        if not found:
            raise GuestUnreachable(f"no way to the guest's agent ({path})")
        yield FakeShell(self, found[0])

    def _build_image(
        self, image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]
    ) -> None:
        self.ask("build-image")
        on_line(f"I: unpacking {image.suite}")
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", target, "1M"], deadline=deadline)


class FakeSaves:
    """Saves as a test has them: each wait is the next of `then`, and after the last one comes ^C."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.then = list(then)
        self.news = False
        self.watched: list[Path] = []

    def point(self, folder: Path, file: Path) -> None:
        if self.watched[-1:] != [folder]:
            self.watched.append(folder)

    def forget(self) -> None:
        self.news = False

    def wait(self) -> None:
        if not self.then:
            raise KeyboardInterrupt
        self.then.pop(0)()
        self.news = True


class FakeArchive(Archive):
    """apt without a network: the World's indexes, and packages of no content."""

    def __init__(self, world: World, folder: Path, arch: str) -> None:
        super().__init__(folder, arch)
        self._world = world

    @property
    def status(self) -> str:
        return f"Package: linux-image-{self._world.release}\nVersion: 1\n"

    def update(
        self,
        disk: Path,
        further: Sequence[str],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        self._world.ask("update")

    def indexes(self) -> Iterator[tuple[str, str]]:
        yield from self._world.indexes.items()

    def fetch(
        self, packages: Sequence[str], suite: str | None, deadline: Deadline, on_line: Callable[[str], None]
    ) -> list[Path]:
        self._world.ask(f"fetch {' '.join(packages)}" + (f" from {suite}" if suite else ""))
        return [package_file(self.folder, package.partition("=")[0]) for package in packages]


class Machine:
    """One running domain of a World."""

    def __init__(self, xml: str, root: Path) -> None:
        about = ET.fromstring(xml)
        log = about.find("devices/serial/log")
        self.xml = xml
        self.name = about.findtext("name", "")
        self.console = Path(log.get("file", "") if log is not None else "")
        self.baking = len(about.findall("devices/disk")) > 1
        self.port: int | None = None
        channel = about.find("devices/channel/source")
        self.root, self.channel = root, Path(channel.get("path", "") if channel is not None else "")
        self.loaded: list[str] = []
        self.synced: set[str] = set()
        """The modules' folders that were unpacked."""
        self.taint = 0
        self.files: dict[tuple[str, str], bytes] = {}
        """What the modules' folders hold, by module and path, of what was unpacked or built there."""
        self.mok = testing_keys.enrolled(Path(about.findtext("os/nvram", "")))
        """The certificates that its kernel goes by; None without Secure Boot."""
        self.process: Conversation | None = None
        self._clock = 100.0
        if not self.baking:
            root.mkdir(parents=True, exist_ok=True)
            stand_in = root / "qemu-system-stand-in"
            with contextlib.suppress(FileExistsError):
                stand_in.symlink_to("/bin/sh")
            # It waits for a line that never comes, and so ends with whoever started it.
            self.process = Conversation([stand_in, "-c", "echo here; read line", f"{root}/"], {})
            self.process.listen(Deadline(10))

    @property
    def runs(self) -> bool:
        """Whether its process is there still: nobody need have asked a door to end it."""
        return self.process is not None and bool(hypervisor.processes(self.root))

    def say(self, text: str, facility: int = 0) -> None:
        """A record of the kernel's log, or with another facility a program's, on the console."""
        level, words = (int(text[1]), text[3:]) if re.match("<[0-7]>", text) else (6, text)
        self._clock += 0.001
        with self.console.open("a", encoding="utf-8") as console:
            console.write(f"<{facility * 8 + level}>[{self._clock:12.6f}] {words}\n")

    def end(self) -> None:
        if self.process is not None:
            self.process.__exit__()
        self.process = None


class FakeHypervisor(Hypervisor):
    """libvirt without libvirt."""

    def __init__(self, world: World, root: Path) -> None:
        self._world, self._root = world, root

    def start(self, xml: str) -> None:
        self._world.ask("start")
        machine = self._begin(xml)
        if machine.baking:
            *_, seed = (source.get("file", "") for source in ET.fromstring(xml).iterfind("devices/disk/source"))
            self._world.seeds.append(Path(seed).read_bytes())
            words = (f"kernel {self._world.release}", f"hostkey {HOST_KEY}", f"done {self._world.release}")
            for line in self._world.first_boot or tuple(f"<5>kmlab-bake: {word}" for word in words):
                machine.say(line, facility=1)
        elif not self._world.silent:
            machine.say(f"<5>Linux version {self._world.release}")

    def save(self, name: str, image: Path) -> None:
        self._world.ask("save")
        image.write_text(self._machine(name).xml, encoding="utf-8")
        self._machine(name).end()

    def restore(self, image: Path, change: Callable[[str], str]) -> None:
        self._world.ask("restore")
        self._begin(change(image.read_text(encoding="utf-8")))

    def dump(self, name: str, target: Path) -> None:
        self._world.ask("dump")
        if not self._machine(name).runs:
            raise HypervisorError(f"Domain is not running: {name}")
        pieces = [(0, b"KDUMP   " + bytes(4088)), (8192, self._machine(name).name.encode()), (-1, b"")]
        body = b"".join(struct.pack(">qq", at, len(content)) + content for at, content in pieces)
        target.write_bytes(b"makedumpfile".ljust(4096, b"\0") + body)

    def stop(self, name: str) -> None:
        self._world.ask("stop")
        if (self._root, name) in self._world.machines:
            self._machine(name).end()

    def runs(self, name: str) -> bool:
        return self._machine(name).runs

    def xml(self, name: str) -> str:
        return self._machine(name).xml

    def forward(self, name: str, guest_port: int) -> int:
        port = self._machine(name).port = self._world.new_port()
        return port

    def monitor(self, name: str, command: str) -> str:
        self._world.ask(f"monitor {command}")
        return self._world.monitor.get(command, "")

    def _begin(self, xml: str) -> Machine:
        machine = Machine(xml, self._root)
        self._world.machines[self._root, machine.name] = machine
        machine.console.touch()
        return machine

    def _machine(self, name: str) -> Machine:
        if (self._root, name) not in self._world.machines:
            raise HypervisorError(f"Domain not found: {name}")
        return self._world.machines[self._root, name]


class FakeShell(Shell):
    """A guest's shell that knows the lines the story says, and answers as the World's modules would have it."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine

    @property
    def alive(self) -> bool:
        return self._machine.runs

    def run(
        self,
        command: str,
        deadline: Deadline,
        *,
        data: bytes = b"",
        on_output: Callable[[bytes], None] | None = None,
        abandon: threading.Event | None = None,
    ) -> Answer:
        self._world.lines.append(command)
        if not self.alive:
            return Answer(None, b"", b"", lost=True)
        if command == "sh":
            return Answer(0, f"state=running\nrelease={self._world.release}\n".encode(), b"")
        if command == guestkeys.QUESTION:
            return Answer(0, testing_keys.keyring_answer(self._world.release, self._machine.mok).encode(), b"")
        if command == look() or command.endswith(f"; {look()}"):
            return Answer(0, self._look().encode(), b"")
        if command.startswith("cd /proc; "):
            return Answer(0, self._world.holders, b"")
        if command.startswith("tar "):
            self._machine.synced.add(_folder_in(command))
            with tarfile.open(fileobj=io.BytesIO(data)) as members:
                for member in members:
                    content = members.extractfile(member) if member.isreg() else None
                    if content is not None:
                        self._machine.files[_folder_in(command), member.name] = content.read()
        if command.startswith("strip "):
            folder, path = _folder_in(command), command.rsplit("/", 1)[-1]
            bare = sign.strip_signature(self._machine.files[folder, path]) + b"stripped"
            self._machine.files[folder, path] = bare
            return Answer(0, bare, b"")
        if " make " in command:
            return self._build(self._module(_folder_in(command)), deadline, abandon)
        step = re.fullmatch(r"\{ (?P<line>.*); \} < /dev/null; .* echo (?P<mark>kmlab-\w+); .*", command, re.DOTALL)
        if step:
            return self._step(step["line"], step["mark"], deadline, abandon)
        return Answer(0, b"", b"")

    def _module(self, name: str) -> FakeModule:
        return self._world.modules.get(name) or FakeModule(name=name)

    def _build(self, module: FakeModule, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        if module.name not in self._machine.synced:
            return Answer(90, b"", b"cd: no such folder\n")
        answer = self._play(module.build, deadline, abandon)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as members:
            for path, image in module.built().items() if answer.ok else ():
                member = tarfile.TarInfo(f"./{path}")
                # make leaves a module as it is that somebody signed.
                there = self._machine.files.setdefault((module.name, path), image)
                member.size = len(there)
                members.addfile(member, io.BytesIO(there))
        return Answer(answer.code, archive.getvalue(), answer.err, answer.lost)

    def _step(self, line: str, mark: str, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        words = shlex.split(line)
        if "insmod" in words:
            module = Path(words[words.index("insmod") + 1]).stem
            path = words[words.index("insmod") + 1].removeprefix("./")
            image = self._machine.files.get((_folder_in(line), path), b"")
            said, act = testing_keys.refusal(self._machine.mok, image), self._module(_folder_in(line)).load
            if said is not None:
                error = "insmod: ERROR: could not insert module: Key was rejected by service\n"
                act = Act(code=1, error=error, kernel=said)
            elif self._world.taints_unsigned and self._machine.mok is None:
                self._machine.taint |= 1 << 13
        elif words[0] == "rmmod":
            module = words[1]
            owners = [m for m in self._world.modules.values() if any(Path(p).stem == module for p in m.built())]
            act = owners[0].unload if owners else Act()
        else:
            module, act = "", self._module(_folder_in(line)).exercise
        answer = self._play(act, deadline, abandon)
        if answer.code is None:
            return answer
        if answer.ok and "insmod" in words:
            self._machine.loaded.append(module)
        elif answer.ok and words[0] == "rmmod" and module in self._machine.loaded:
            self._machine.loaded.remove(module)
        self._machine.say(f"<5>{mark}", facility=1)
        out = f"{answer.text}\n{mark}\n{self._look(module, int(not answer.ok))}"
        return Answer(answer.code, out.encode(), answer.err)

    def _look(self, module: str = "", users: int = 0) -> str:
        """What tail(1) says of the kernel's files, one module's sections among them; each is used so many times."""
        listed = "".join(f"{name} 16384 {users} - Live 0x0000000000000000 (OE)\n" for name in self._machine.loaded)
        parts = {"/proc/sys/kernel/tainted": f"{self._machine.taint}\n", "/proc/modules": listed}
        if module in self._machine.loaded:
            parts[f"/sys/module/{module}/sections/.text"] = f"{TEXT:#x}\n"
        return "\n".join(f"==> {place} <==\n{content}" for place, content in parts.items())

    def _play(self, act: Act, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        for text in act.kernel:
            self._machine.say(text)
        self._machine.taint |= act.taint
        if act.ends == "lost":
            self._machine.end()
            return Answer(None, b"", b"", lost=True)
        while act.ends == "hangs" and not deadline.passed and not (abandon is not None and abandon.is_set()):
            if not self._machine.runs:
                return Answer(None, b"", b"", lost=True)
            time.sleep(0.01)
        return Answer(None if act.ends == "hangs" else act.code, act.output.encode(), act.error.encode())


def module_image(name: str, *, imports: Sequence[str] = (), has_exit: bool = True, **tags: str) -> bytes:
    """The smallest .ko that says what it is: an ELF object with .modinfo and a symbol table (elf(5))."""
    said = {"name": name, "license": "GPL", "vermagic": f"{RELEASE} SMP mod_unload ", **tags}
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in said.items())
    symbols, names = bytes(24), b"\0"
    for symbol, section in [*((n, 0) for n in imports), *([("cleanup_module", 2)] if has_exit else [])]:
        symbols += struct.pack("<IBBHQQ", len(names), 0x10, 0, section, 0, 0)
        names += symbol.encode() + b"\0"
    titles = (b"", b".modinfo", b".gnu.linkonce.this_module", b".symtab", b".strtab", b".shstrtab")
    contents = (b"", info, bytes(64), symbols, names, b"\0".join(titles) + b"\0")
    kinds, body, headers, title = (0, 1, 1, 2, 3, 3), b"", b"", 0
    for number, (kind, content) in enumerate(zip(kinds, contents, strict=True)):
        link, size = (4, 24) if kind == 2 else (0, 0)
        headers += struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, 64 + len(body), len(content), link, 0, 1, size)
        body, title = body + content, title + len(titles[number]) + 1
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 6, 5) + body + headers


def _folder_in(line: str) -> str:
    """The module that a shell line is about, by its folder."""
    found = re.search(re.escape(str(WORKSHOP)) + r"/([A-Za-z0-9_.+-]+)", line)
    return found[1] if found else ""
