"""Run one libvirt connection in a separate process. Only this file imports libvirt.

A process can open only one root of libvirt's embedded driver ("already open with path"), and only one process can have
a root open. So each `hypervisor.opened` starts a worker, which ends with its `with` block. It reads one JSON request
per line, `[operation, arguments…]`, and answers `{"ok": value}` or `{"error": text, "code": N}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import libvirt
import libvirt_qemu


class Operations:
    """The supported operations; each public method is one."""

    def __init__(self, uri: str) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, daemon=True).start()
        with _on_one_cpu():
            self._connection = libvirt.open(uri)

    def version(self) -> int:
        return int(libvirt.getVersion())

    def start(self, xml: str) -> None:
        self._connection.createXML(xml, 0)

    def save(self, name: str, image: str) -> None:
        self._domain(name).save(image)

    def saved_xml(self, image: str) -> str:
        return str(self._connection.saveImageGetXMLDesc(image, 0))

    def restore(self, image: str, xml: str) -> None:
        self._connection.restoreFlags(image, xml, 0)

    def dump(self, name: str, target: str) -> None:
        domain = self._domain(name)
        domain.coreDumpWithFormat(target, libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_KDUMP_ZLIB, libvirt.VIR_DUMP_MEMORY_ONLY)

    def stop(self, name: str) -> None:
        try:
            self._domain(name).destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise

    def runs(self, name: str) -> bool:
        try:
            return bool(self._domain(name).isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise

    def xml(self, name: str) -> str:
        return str(self._domain(name).XMLDesc(0))

    def monitor(self, name: str, command: str) -> str:
        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        return str(libvirt_qemu.qemuMonitorCommand(self._domain(name), command, flags))

    def qmp(self, name: str, command: str) -> str:
        return str(libvirt_qemu.qemuMonitorCommand(self._domain(name), command, 0))

    def attach(self, name: str, xml: str) -> None:
        self._domain(name).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def detach(self, name: str, xml: str) -> None:
        self._domain(name).detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _domain(self, name: str) -> libvirt.virDomain:
        return self._connection.lookupByName(name)


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Run the driver's start always on the same CPU.

    CPUID differs between the CPUs of a hybrid processor and of some virtual machines. On another CPU than before,
    libvirt concludes that the host has changed and queries QEMU's capabilities again, which takes seconds
    (virQEMUCapsIsValid in its qemu_capabilities.c: "host cpuid changed").
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def main() -> None:
    """Serve requests on stdin until it closes. The first answer reports whether the connection opened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles ^C; an operation must not stop halfway
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libvirt's output must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        operations = Operations(sys.argv[1])
    except libvirt.libvirtError as error:
        answer({"error": error.get_error_message(), "code": error.get_error_code()})
        return
    answer({"ok": None})
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        try:
            answer({"ok": getattr(operations, operation)(*arguments)})
        except libvirt.libvirtError as error:
            answer({"error": error.get_error_message(), "code": error.get_error_code()})
    os._exit(0)  # skip the slow shutdown: libvirt has nothing to write any more


if __name__ == "__main__":
    main()
