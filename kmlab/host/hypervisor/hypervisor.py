"""Start, save, restore and query domains through libvirt (https://libvirt.org/drvqemu.html, "Embedded driver").

A `Hypervisor` is open only while libvirt is needed. Guests continue without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kmlab.common import paths
from kmlab.common.errors import HypervisorError, HypervisorUnavailable
from kmlab.common.events import Deadline
from kmlab.host.process import host_packages
from kmlab.host.process.command import Conversation

EMBEDDED = "embedded"

_SLIRP_MISSING = re.compile(r"'user' is not (compiled|a valid netdev)|does not accept value 'user'|slirp|passt", re.I)
_NO_SLIRP = (
    "kmlab needs a QEMU with user-mode networking (slirp); RHEL and its relatives build QEMU without it, so use "
    "another distribution's QEMU. If /usr/bin/slirp-helper exists, libvirt uses it instead of QEMU's own: remove it"
)
_PATIENCE = 120.0
"""The time limit of one libvirt operation, in seconds. Saving a large guest on a slow disk takes longest."""


class Hypervisor:
    """One open connection. Use `opened` to make one."""

    def __init__(self, worker: Conversation) -> None:
        self._worker = worker

    def version(self) -> int:
        """Return libvirt's version: 9000000 is 9.0.0."""
        return int(self._ask("ask for its version", "version"))

    def start(self, xml: str) -> None:
        """Start a transient domain."""
        self._ask("start the guest", "start", xml)

    def save(self, name: str, image: Path) -> None:
        """Stop the domain and write its memory and devices to `image`."""
        self._ask("save the guest's memory", "save", name, str(image))

    def restore(self, image: Path, change: Callable[[str], str]) -> None:
        """Start a domain from a saved image. `change` converts the saved XML to this guest's XML."""
        saved = self._ask("read the checkpoint", "saved_xml", str(image))
        self._ask("restore the checkpoint", "restore", str(image), change(saved))

    def dump(self, name: str, target: Path) -> None:
        """Write the guest's memory to `target`, in makedumpfile's flattened form. This pauses the guest."""
        self._ask("dump the guest's memory", "dump", name, str(target))

    def stop(self, name: str) -> None:
        """End the domain at once, if it exists."""
        self._ask("stop the guest", "stop", name)

    def runs(self, name: str) -> bool:
        return bool(self._ask("ask for the guest's state", "runs", name))

    def xml(self, name: str) -> str:
        """Return the XML of the running domain, with the values that libvirt and QEMU filled in."""
        return str(self._ask("read the guest's devices", "xml", name))

    def forward(self, name: str, netdev: str, guest_port: int, host_port: int = 0) -> int:
        """Forward a loopback port to the guest's port. Return the host's port: for 0, the kernel chooses one."""
        answer = self.monitor(name, f"hostfwd_add {netdev} tcp:127.0.0.1:{host_port}-:{guest_port}")
        if re.search("unknown command|unrecognized netdev|not found", answer):
            raise HypervisorError(
                "the guest's network is not QEMU's own (slirp), so no port can be forwarded", _NO_SLIRP
            )
        if answer.strip() and host_port:
            raise HypervisorError(
                f"port {host_port} of this host cannot be forwarded to port {guest_port} of the guest",
                "another program or guest uses it: choose another port in `forward:`",
            )
        if answer.strip():
            raise HypervisorError(f"QEMU could not forward a port: {answer.strip()}")
        if host_port:
            return host_port
        table = self.monitor(name, "info usernet")
        for port, forwarded_port in re.findall(
            r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", table
        ):
            if int(forwarded_port) == guest_port:
                return int(port)
        raise HypervisorError(f"QEMU did not report the forwarded port:\n{table.strip()}")

    def unplug(self, name: str, netdev: str) -> None:
        """Unplug the cable of the network card that is connected to this back end."""
        answer = self.monitor(name, f"set_link {netdev} off")
        if answer.strip():
            raise HypervisorError(f"QEMU could not unplug the network: {answer.strip()}")

    def monitor(self, name: str, command: str) -> str:
        """Send a command to QEMU's human monitor and return the answer."""
        return str(self._ask(f"ask QEMU '{command.split(maxsplit=1)[0]}'", "monitor", name, command))

    def qmp(self, name: str, execute: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Send a command to QEMU's machine monitor and return the answer. Raise HypervisorError if QEMU refuses it."""
        command = json.dumps({"execute": execute, "arguments": dict(arguments or {})})
        answer = json.loads(self._ask(f"ask QEMU '{execute}'", "qmp", name, command))
        if "error" in answer:
            raise HypervisorError(f"QEMU refused '{execute}': {answer['error'].get('desc', '')}")
        return answer.get("return")

    def attach(self, name: str, xml: str) -> None:
        """Plug a device into the running domain."""
        self._ask("plug in the device", "attach", name, xml)

    def detach(self, name: str, xml: str) -> None:
        """Unplug a device of the running domain, and wait until the guest has let it go."""
        self._ask("unplug the device", "detach", name, xml)

    def _ask(self, what: str, *request: str) -> Any:
        try:
            answer = json.loads(self._worker.ask(json.dumps(request), Deadline(_PATIENCE)))
        except ValueError:
            raise HypervisorError(f"libvirt could not {what}: its process ended") from None
        if "error" in answer:
            message = str(answer["error"])
            hint = _NO_SLIRP if _SLIRP_MISSING.search(message) else paths.disk_full_hint(message)
            raise HypervisorError(f"libvirt could not {what}: {message}", hint)
        return answer["ok"]


@contextlib.contextmanager
def opened(uri: str, root: Path, deadline: Deadline) -> Iterator[Hypervisor]:
    """Connect to libvirt at `uri`, or to the embedded driver with the root `root` if `uri` is "embedded".

    Wait until the deadline while another process uses the root. Raise HypervisorUnavailable if it cannot connect.
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
            failure = _connection_error(worker, deadline)
            if failure is None:
                yield Hypervisor(worker)
                return
        if "driver.pid" in failure and not deadline.passed:
            time.sleep(0.05)
            continue
        raise _unavailable(where, failure)


def _connection_error(worker: Conversation, deadline: Deadline) -> str | None:
    text = worker.listen(deadline.within(60))
    try:
        return json.loads(text).get("error")  # type: ignore[no-any-return]
    except ValueError:
        return f"its process ended: {worker.last_words()}"


def _unavailable(where: str, failure: str) -> HypervisorUnavailable:
    hint = None
    if "no connection driver available" in failure:
        hint = host_packages.install_hint("libvirt-daemon-driver-qemu")
    elif "No module named 'libvirt" in failure:
        hint = "make setup"
    elif "libvirt-qemu" in failure:
        hint = "as root, libvirt needs the system user libvirt-qemu: make setup"
    elif "Failed to connect socket" in failure:
        hint = "start libvirtd, or use `libvirt: embedded`, which needs no daemon"
    return HypervisorUnavailable(f"cannot open libvirt at {where}: {failure}", hint)


def _prepare(root: Path) -> None:
    """Prepare an embedded root: its settings, and the shared cache of QEMU's capabilities."""
    paths.check_socket_path(root)
    settings = root / "etc" / "qemu.conf"
    if settings.exists():
        return
    paths.make_folder(root, 0o700)
    shared = paths.make_folder(paths.capabilities())
    with contextlib.suppress(FileExistsError):
        (root / "cache").symlink_to(shared)
    # QEMU runs as the user and no file changes its owner, so that the user can delete all files.
    lines = ['stdio_handler = "file"', 'security_driver = "none"', "remember_owner = 0"]
    if os.geteuid() == 0:
        lines += ['user = "root"', 'group = "root"', "dynamic_ownership = 0", "namespaces = []"]
        lines += ['swtpm_user = "root"', 'swtpm_group = "root"']
        lines += ["cgroup_controllers = []"]
    paths.write_text(settings, "\n".join(lines) + "\n", 0o600)


def processes(folder: Path) -> list[int]:
    """Return the pids of every QEMU with files below this folder, without libvirt."""
    needle = os.fsencode(f"{folder}/")
    return [pid for pid in _pids() if (words := _command_line(pid)) and _is_qemu(words) and needle in words]


def processes_reading(folder: Path) -> list[int]:
    """Return the pids of every QEMU that has a file of this folder open, as far as the user can see them (proc(5))."""
    needle = os.fsencode(f"{folder.resolve()}/")
    return [pid for pid in _pids() if _is_qemu(_command_line(pid)) and any(f.startswith(needle) for f in _open(pid))]


def _open(pid: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.fsencode(os.readlink(entry.path))


def alive(pid: int, folder: Path) -> bool:
    """Return whether this pid is still a QEMU of that folder, and not another process that reused the pid."""
    words = _command_line(pid)
    return _is_qemu(words) and os.fsencode(f"{folder}/") in words


def kill(folder: Path) -> list[int]:
    """Kill every QEMU of that folder and return their pids. A clean shutdown would take seconds and is not needed."""
    pids = processes(folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = Deadline(5)
    while not all(map(_released, pids)) and not deadline.passed:
        time.sleep(0.005)
    return pids


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has taken, in seconds; 0 if it has ended (proc(5), /proc/pid/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_workers(root: Path) -> None:
    """Kill every libvirt worker that a killed kmlab left with this root open. A stopped one never ends itself."""
    needle = os.fsencode(f"root={root}\0")
    for pid in _pids():
        words = _command_line(pid)
        if b"\0kmlab.host.hypervisor.libvirt_worker\0" in words and needle in words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _released(pid: int) -> bool:
    """Return whether a killed process has released its memory, files and ports: it is then a zombie, or reaped.

    Its command line becomes unreadable much earlier (exit_mm in the kernel's do_exit).
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
