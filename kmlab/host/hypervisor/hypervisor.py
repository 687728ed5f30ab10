"""Domains, asked of libvirt (https://libvirt.org/drvqemu.html, "Embedded driver").

A `Hypervisor` is opened for the short libvirt work and closed again; guests go on without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kmlab.common import paths
from kmlab.common.errors import HypervisorError, HypervisorUnavailable
from kmlab.common.events import Deadline
from kmlab.host.process.command import Conversation

EMBEDDED = "embedded"

_NETWORK_DEVICE = "hostnet0"
"""QEMU's name for the first network back end, as libvirt gives it."""
_PATIENCE = 120.0
"""Seconds that one libvirt operation may take; saving a large guest on a slow disk is the longest."""


class Hypervisor:
    """One open connection. Made by `opened`."""

    def __init__(self, worker: Conversation) -> None:
        self._worker = worker

    def start(self, xml: str) -> None:
        """Start a transient domain."""
        self._ask("start the guest", "start", xml)

    def save(self, name: str, image: Path) -> None:
        """Stop the domain and write its memory and devices to `image`."""
        self._ask("save the guest's memory", "save", name, str(image))

    def restore(self, image: Path, change: Callable[[str], str]) -> None:
        """Start a domain from a saved image; `change` turns its saved XML into that of this guest."""
        saved = self._ask("read the checkpoint", "saved_xml", str(image))
        self._ask("restore the checkpoint", "restore", str(image), change(saved))

    def dump(self, name: str, target: Path) -> None:
        """Write the guest's memory to `target`, in makedumpfile's flattened form; it stands still meanwhile."""
        self._ask("dump the guest's memory", "dump", name, str(target))

    def stop(self, name: str) -> None:
        """End the domain at once; gone already is well."""
        self._ask("stop the guest", "stop", name)

    def runs(self, name: str) -> bool:
        return bool(self._ask("ask for the guest's state", "runs", name))

    def xml(self, name: str) -> str:
        """The running domain, with what libvirt and QEMU made of it."""
        return str(self._ask("read the guest's devices", "xml", name))

    def forward(self, name: str, guest_port: int) -> int:
        """Forward a loopback port, chosen by the host's kernel, to the guest's port; returns the host's."""
        answer = self.monitor(name, f"hostfwd_add {_NETWORK_DEVICE} tcp:127.0.0.1:0-:{guest_port}")
        if answer.strip():
            raise HypervisorError(f"QEMU could not forward a port: {answer.strip()}")
        table = self.monitor(name, "info usernet")
        for port, its_port in re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", table):
            if int(its_port) == guest_port:
                return int(port)
        raise HypervisorError(f"QEMU did not say which port it forwards:\n{table.strip()}")

    def monitor(self, name: str, command: str) -> str:
        """QEMU's answer to a command of its human monitor."""
        return str(self._ask(f"ask QEMU '{command.split(maxsplit=1)[0]}'", "monitor", name, command))

    def _ask(self, what: str, *request: str) -> Any:
        try:
            answer = json.loads(self._worker.ask(json.dumps(request), Deadline(_PATIENCE)))
        except ValueError:
            raise HypervisorError(f"libvirt could not {what}: its process ended") from None
        if "error" in answer:
            said = str(answer["error"])
            raise HypervisorError(f"libvirt could not {what}: {said}", paths.disk_full_hint(said))
        return answer["ok"]


@contextlib.contextmanager
def opened(uri: str, root: Path, deadline: Deadline) -> Iterator[Hypervisor]:
    """A connection to libvirt: to `uri`, or, when that is "embedded", to the driver embedded under `root`.

    Waits while another process holds the root, until the deadline.
    """
    where = uri
    if uri == EMBEDDED:
        _prepare(root)
        where = f"qemu:///embed?root={root}"
    log = paths.make_folder(paths.state_home()) / "libvirt.log"
    environment = {"LIBVIRT_LOG_OUTPUTS": f"3:file:{log}"}
    while True:
        argv = [sys.executable, "-m", "kmlab.host.hypervisor.libvirt_worker", where]
        with Conversation(argv, environment) as worker:
            refused = _refusal(worker, deadline)
            if refused is None:
                yield Hypervisor(worker)
                return
        if "driver.pid" in refused and not deadline.passed:
            time.sleep(0.05)
            continue
        raise _explained(where, refused)


def _refusal(worker: Conversation, deadline: Deadline) -> str | None:
    text = worker.listen(deadline.within(60))
    try:
        return json.loads(text).get("error")  # type: ignore[no-any-return]
    except ValueError:
        return f"its process ended: {worker.last_words()}"


def _explained(where: str, refused: str) -> HypervisorUnavailable:
    hint = None
    if "no connection driver available" in refused:
        hint = "sudo apt-get install libvirt-daemon-driver-qemu   (or: make setup)"
    elif "No module named 'libvirt" in refused:
        hint = "make setup"
    elif "libvirt-qemu" in refused:
        hint = "as root libvirt needs the system user libvirt-qemu to exist: make setup"
    elif "Failed to connect socket" in refused:
        hint = "is libvirtd running? Or use `libvirt: embedded`, which needs no daemon"
    return HypervisorUnavailable(f"cannot open libvirt at {where}: {refused}", hint)


def _prepare(root: Path) -> None:
    """An embedded root: its settings, and the shared cache of what libvirt found out about QEMU."""
    paths.check_socket_path(root)
    settings = root / "etc" / "qemu.conf"
    if settings.exists():
        return
    paths.make_folder(root, 0o700)
    shared = paths.make_folder(paths.capabilities())
    with contextlib.suppress(FileExistsError):
        (root / "cache").symlink_to(shared)
    # QEMU runs as the person, and no file changes its owner: whoever may run kmlab may delete all it left.
    lines = ['stdio_handler = "file"', 'security_driver = "none"', "remember_owner = 0"]
    if os.geteuid() == 0:
        lines += ['user = "root"', 'group = "root"', "dynamic_ownership = 0", "namespaces = []"]
        lines += ["cgroup_controllers = []"]
    paths.write_text(settings, "\n".join(lines) + "\n", 0o600)


def processes(beneath: Path) -> list[int]:
    """The pids of every QEMU that has files beneath this folder, found without libvirt."""
    needle = os.fsencode(f"{beneath}/")
    return [pid for pid in _pids() if (words := _command_line(pid)) and _is_qemu(words) and needle in words]


def readers(folder: Path) -> list[int]:
    """The pids of every QEMU that has a file of this folder open, as far as the person may see them (proc(5))."""
    needle = os.fsencode(f"{folder.resolve()}/")
    return [pid for pid in _pids() if _is_qemu(_command_line(pid)) and any(f.startswith(needle) for f in _open(pid))]


def _open(pid: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.fsencode(os.readlink(entry.path))


def alive(pid: int, beneath: Path) -> bool:
    """Whether this pid still is a QEMU of that folder, and not somebody who got its number later."""
    words = _command_line(pid)
    return _is_qemu(words) and os.fsencode(f"{beneath}/") in words


def kill(beneath: Path) -> list[int]:
    """End every QEMU of that folder at once; their pids. Nothing of a guest is worth the seconds of a gentle end."""
    found = processes(beneath)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = Deadline(5)
    while not all(map(_gone, found)) and not deadline.passed:
        time.sleep(0.005)
    return found


def _gone(pid: int) -> bool:
    """Whether a killed process has let go of its memory, files and ports: only then is it a zombie, or reaped.

    Its command line cannot be read long before (exit_mm in the kernel's do_exit).
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _pids() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _is_qemu(words: bytes) -> bool:
    return b"qemu-system" in words.split(b"\0", 1)[0]
