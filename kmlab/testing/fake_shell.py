"""Provide a guest's shell without a guest; it replaces host/channel/agent.py and host/channel/ssh.py."""

from __future__ import annotations

import base64
import fnmatch
import io
import re
import shlex
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import Answer, Shell
from kmlab.kernel.module.users import NAMES
from kmlab.kernel.signing import guest_keyring
from kmlab.kernel.signing.signature import strip_signature
from kmlab.provision.guest import MODULES_FOLDER
from kmlab.run.torture.fuzz import FUZZ_FOLDER, REPRODUCER
from kmlab.testing import fake_keys
from kmlab.testing.fake_machine import Machine
from kmlab.testing.fake_modules import Act, FakeModule
from kmlab.testing.setting import WorldState

TEXT = 0xFFFFFFFFC0261000
"""The address of every module's code."""


_HARMLESS = (
    r"set -e; agent=/usr/local/lib/kmlab/agent; mkdir -p .*; gcc .* -o \$agent -; if .* fi$",
    r"mkdir -p \S+ && cd \S+ && xargs -0 rm -rf --$",
    r"tar -C \S+ -xpf - ",
    r"cat /proc/kallsyms$",
    r"cd /lib/modules/\$\(uname -r\) && grep ",
    r"sha256sum ",
    r"grep -s -H -E ",
    r"cat /proc/vmallocinfo ",
    r"cd \S+ && tree=/lib/modules/\$\(uname -r\) && ",
    r"tree=/lib/modules/\$\(uname -r\) && rm -rf ",
    r"echo \w > /proc/sysrq-trigger$",
    r"n=0; for d in '/sys/bus/",
)
"""Patterns of lines that end with 0 and print nothing. Any other line is an error: a new step needs a fake."""


class FakeShell(Shell):
    """A guest's shell that knows the lines of a run, and answers as the World's modules define."""

    def __init__(self, world: WorldState, machine: Machine) -> None:
        self._world, self._machine = world, machine
        self._users = 0
        """The reference count of each loaded module, since the last step."""

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
        if command == guest_keyring.QUESTION:
            return Answer(
                0, fake_keys.keyring_answer(self._world.release, self._machine.mok, self._world.enforces).encode(), b""
            )
        if command.startswith("ls -d "):
            return Answer(0, "\n".join(self._world.files).encode(), b"")
        if command.startswith("for m in ") and "/drivers/*" in command:
            return Answer(0, self._world.drivers, b"")
        if command == NAMES:
            return Answer(0, b"", b"")
        if command.startswith("cd /proc; "):
            return Answer(0, self._world.holders, b"")
        if command.startswith("tar "):
            self._machine.synced.add(_folder_in(command))
            with tarfile.open(fileobj=io.BytesIO(data)) as members:
                for member in members:
                    content = members.extractfile(member) if member.isreg() else None
                    if content is not None:
                        self._machine.files[_folder_in(command), member.name] = content.read()
        if " && tar -xf - && gcc " in command:
            return self._compile(data)
        if command.startswith("strip "):
            folder, path = _folder_in(command), command.rsplit("/", 1)[-1]
            bare = strip_signature(self._machine.files[folder, path]) + b"stripped"
            self._machine.files[folder, path] = bare
            return Answer(0, bare, b"")
        if " make " in command:
            return self._build(self._module(_folder_in(command)), deadline, abandon)
        step = re.fullmatch(r"\{ (?P<line>.*); \} < /dev/null", command, re.DOTALL)
        if step:
            return self._step(step["line"], deadline, abandon)
        if not any(re.match(pattern, command, re.DOTALL) for pattern in _HARMLESS):
            raise AssertionError(f"the fake guest does not know this line: {command}")
        return Answer(0, b"", b"")

    def wake(self, now: float, noise: bytes, deadline: Deadline) -> Answer:
        return Answer(0, b"", b"") if self.alive else Answer(None, b"", b"", lost=True)

    def read_files(
        self, patterns: Sequence[str], deadline: Deadline, *, mark: str = "", abandon: threading.Event | None = None
    ) -> Answer:
        self._world.lines.append(f"look {mark}")
        if not self.alive or self._machine.panicked:
            return Answer(None, b"", b"", lost=not self.alive)
        if mark:
            self._machine.say(f"<5>{mark}", facility=1)
        sections = next((p for p in patterns if p.startswith("/sys/module/")), "")
        text = self._look(sections.split("/")[3] if sections else "")
        for path, content in self._world.files.items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in patterns):
                text += f"\n==> {path} <==\n{content}"
        return Answer(0, text.encode(), b"")

    def kernel_log(self, deadline: Deadline) -> Answer:
        if not self.alive or self._machine.panicked:
            return Answer(None, b"", b"", lost=not self.alive)
        return Answer(self._machine.ring_code, "".join(self._machine.ring).encode(), b"")

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
                # make does not rebuild a module that was signed after the build.
                content = self._machine.files.setdefault((module.name, path), image)
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))
        return Answer(answer.code, archive.getvalue(), answer.err, answer.lost)

    def _compile(self, archive: bytes) -> Answer:
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            contents = {member.name: members.extractfile(member) for member in members}
            self._machine.programs |= {name: file.read().decode() for name, file in contents.items() if file}
        broken = any("#error" in text for text in self._machine.programs.values())
        return Answer(int(broken), b"", b"table.c:9: error: #error \x1b[2J" if broken else b"")

    def _step(self, line: str, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        if "| base64 -w0" in line:
            files = self._module(_folder_in(line)).files if self.alive else ()
            return Answer(0, b"".join(path + b"\0" + base64.b64encode(content) + b"\0" for path, content in files), b"")
        words = shlex.split(line)
        if words[0] == "sh" and (case := re.match(r"# case (\S+)\n", words[2])):
            tortured = self._module(_folder_in(line))
            again = f"{FUZZ_FOLDER}/{REPRODUCER}" in words[2]
            act = (
                tortured.reproduces(self._machine.programs["reproducer.c"]) if again else tortured.torture.get(case[1])
            )
            return self._play(act or Act(), deadline, abandon)
        if self._world.replaced & set(words):
            return Answer(0, b"", b"")
        if "insmod" in words:
            module = Path(words[words.index("insmod") + 1]).stem
            path = words[words.index("insmod") + 1].removeprefix("./")
            image = self._machine.files.get((_folder_in(line), path), b"")
            refusal, act = (
                fake_keys.refusal(self._machine.mok, image, self._world.enforces),
                self._world.once.pop(module, None) or self._module(_folder_in(line)).load,
            )
            if refusal is not None:
                error = f"insmod: ERROR: could not insert module: {refusal[0]}\n"
                act = Act(code=1, error=error, kernel=refusal[1])
            elif self._world.taints_unsigned and self._machine.mok is None:
                self._machine.taint |= 1 << 13
        elif words[0] == "modprobe":
            module = words[1]
            owners = [m for m in self._world.modules.values() if any(Path(p).stem == module for p in m.built())]
            act = owners[0].load if owners else Act()
        elif words[0] == "rmmod":
            module = words[1].rstrip(";")
            owners = [m for m in self._world.modules.values() if any(Path(p).stem == module for p in m.built())]
            act = owners[0].unload if owners else Act()
        else:
            owner = self._module(_folder_in(line))
            module, act = "", owner.exercises.get(words[-1], owner.exercise)
        answer = self._play(act, deadline, abandon)
        if answer.code is None:
            return answer
        self._users = int(not answer.ok)
        if answer.ok and ("insmod" in words or words[0] == "modprobe"):
            self._machine.loaded += self._world.brings.get(module, ())
            self._machine.loaded.append(module.replace("-", "_"))
        elif answer.ok and words[0] == "rmmod":
            gone = {word.rstrip(";") for word in words} - self._world.stays
            self._machine.loaded = [name for name in self._machine.loaded if name not in gone]
        return answer

    def _look(self, module: str = "") -> str:
        """Return the kernel's files as the agent reads them, with one module's sections."""
        listed = "".join(
            f"{name} 16384 {self._users} - Live 0x0000000000000000 (OE)\n"
            for name in self._machine.loaded
            if name not in self._world.hides
        )
        parts = {"/proc/sys/kernel/tainted": f"{self._machine.taint}\n", "/proc/modules": listed}
        if module in self._machine.loaded:
            parts[f"/sys/module/{module}/sections/.text"] = f"{TEXT:#x}\n"
        return "\n".join(f"==> {place} <==\n{content}" for place, content in parts.items())

    def _play(self, act: Act, deadline: Deadline, abandon: threading.Event | None) -> Answer:
        self._machine.heard = self._machine.heard and not act.mutes
        self._machine.write(act.serial)
        if act.overwrites:
            self._machine.overwrite()
        for text in act.kernel:
            self._machine.say(text)
        self._machine.taint |= act.taint
        if act.ends == "lost":
            self._machine.end()
            return Answer(None, act.output.encode(), act.error.encode(), lost=True)
        while act.ends == "hangs" and not deadline.passed and not (abandon is not None and abandon.is_set()):
            if not self._machine.runs:
                return Answer(None, b"", b"", lost=True)
            time.sleep(0.01)
        return Answer(None if act.ends == "hangs" else act.code, act.output.encode(), act.error.encode())


def _folder_in(line: str) -> str:
    """Return the module that a shell line is about, by its folder."""
    match = re.search(re.escape(str(MODULES_FOLDER)) + r"/([A-Za-z0-9_.+-]+)", line)
    return match[1] if match else ""
