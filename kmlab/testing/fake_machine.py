"""Provide a running domain without a kernel: its console and its process are real."""

from __future__ import annotations

import contextlib
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from kmlab.common.events import Deadline
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process.command import Conversation
from kmlab.testing import fake_keys


class Machine:
    """One running domain of a World."""

    def __init__(self, xml: str, root: Path) -> None:
        about = ET.fromstring(xml)
        log = about.find("devices/serial/log")
        self.xml = xml
        self.name = about.findtext("name", "")
        self.console = Path(log.get("file", "") if log is not None else "")
        self.baking = about.find("devices/disk/readonly") is not None
        self.port: int | None = None
        channel = about.find("devices/channel/source")
        self.root, self.channel = root, Path(channel.get("path", "") if channel is not None else "")
        self.loaded: list[str] = []
        self.synced: set[str] = set()
        """Folders of modules that were unpacked."""
        self.plugged: dict[str, str] = {}
        """The buses of the devices that QEMU was told to plug in, by id."""
        self.taint = 0
        self.files: dict[tuple[str, str], bytes] = {}
        """Files unpacked or built in the modules' folders, by module and path."""
        self.programs: dict[str, str] = {}
        """C files that were compiled to programs of their own, by name."""
        self.mok = fake_keys.enrolled(Path(about.findtext("os/nvram", "")))
        """The certificates that its kernel trusts; None without Secure Boot."""
        self.process: Conversation | None = None
        self._clock = 100.0
        self._numbers = itertools.count()
        self.ring: list[str] = []
        """The kernel's ring buffer, in the format of /dev/kmsg."""
        self.ring_code = 0
        """The exit code of reading it: not 0 if records were overwritten before."""
        self.heard = True
        """Whether the kernel's log goes to the serial port."""
        self.panicked = False
        """Whether the kernel has stopped: it printed `---[ end Kernel panic`, and nothing answers any more."""
        if not self.baking:
            root.mkdir(parents=True, exist_ok=True)
            stand_in = root / "qemu-system-stand-in"
            with contextlib.suppress(FileExistsError):
                stand_in.symlink_to("/bin/sh")
            # It waits for a line that never comes, and so ends with the process that started it.
            self.process = Conversation([stand_in, "-c", "echo here; read line", f"{root}/"], {})
            self.process.listen(Deadline(10))

    @property
    def runs(self) -> bool:
        """Return whether its process still runs: a test may have killed it directly."""
        return self.process is not None and bool(hypervisor.processes(self.root))

    def say(self, text: str, facility: int = 0) -> None:
        """Write a record of the kernel's log to the console, or with another facility a program's."""
        level, words = (int(text[1]), text[3:]) if re.match("<[0-7]>", text) else (6, text)
        self._clock += 0.001
        self.ring.append(f"{facility * 8 + level},{next(self._numbers)},{self._clock * 1e6:.0f},-;{words}\n")
        self.panicked = self.panicked or words.startswith("---[ end Kernel panic")
        if self.heard:
            self.write(f"<{facility * 8 + level}>[{self._clock:12.6f}] {words}\n")

    def write(self, text: str) -> None:
        """Write text to the serial port, as the kernel or a program does."""
        with self.console.open("a", encoding="utf-8") as console:
            console.write(text)

    def overwrite(self) -> None:
        """Drop what the ring buffer holds, as the kernel does when it is full."""
        self.ring.clear()
        self.ring_code = 32

    def end(self) -> None:
        if self.process is not None:
            self.process.__exit__()
        self.process = None
