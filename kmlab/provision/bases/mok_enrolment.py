"""Enrol the lab's certificate as a user would: with mokutil, and MokManager at the next boot.

This is for guests whose UEFI variables kmlab must not write. It takes three boots; `host.varstore` needs none.
"""

from __future__ import annotations

import base64
import secrets
import shlex
import time
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Stage, printable
from kmlab.host.channel import serialport
from kmlab.host.channel.ssh import Shell
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.virt.domain import serial_tty
from kmlab.virt.mokmanager import MokManager, Refused

_BETWEEN_KEYS = 0.3
"""Seconds between two keys, because MokManager redraws its screen after each."""


def request_enrolment(shell: Shell, certificate: Path, deadline: Deadline) -> str:
    """Request the enrolment of a certificate with mokutil, and power off the guest. Return MokManager's password."""
    password = secrets.token_hex(6)
    encoded = base64.b64encode(certificate.read_bytes()).decode()
    script = (
        "set -e; cd /run; umask 077\n"
        f"printf %s {shlex.quote(encoded)} | base64 -d > kmlab-mok.der\n"
        f"mokutil --generate-hash={password} > kmlab-mok.hash\n"
        "mokutil --import kmlab-mok.der --hash-file kmlab-mok.hash\n"
        "rm -f kmlab-mok.der kmlab-mok.hash\n"
    )
    answer = shell.run("sh", deadline, data=script.encode())
    if not answer.ok:
        message = printable((answer.error_text or answer.text).strip(), 200)
        raise LabError(
            f"mokutil could not request the enrolment: {message}", "check that mokutil is installed in the guest"
        )
    shell.run("systemctl poweroff", deadline)
    return password


def wait_until_off(hv: Hypervisor, name: str, deadline: Deadline) -> None:
    while hv.runs(name):
        if deadline.passed:
            raise LabError(f"the guest did not power off within {deadline.seconds:.0f} s")
        time.sleep(0.3)


def answer_screens(hv: Hypervisor, name: str, password: str, stage: Stage, deadline: Deadline) -> None:
    """Answer MokManager's screens in the guest that was just started, until it reboots."""
    device = serial_tty(hv.xml(name))
    if device is None:
        raise LabError("the guest has no serial port for input")
    manager = MokManager(password)
    with serialport.opened(device) as port:
        while not manager.done:
            stage.progress(detail=f"waiting for {manager.awaits}")
            output = port.read(deadline.within(5))
            if output is None or deadline.passed:
                cause = "the guest ended" if output is None else f"{deadline.seconds:.0f} s passed"
                raise LabError(
                    f"MokManager did not finish: {cause} while waiting for {manager.awaits}",
                    "its shim may have another version; enrol the certificate by hand with kmlab console",
                )
            try:
                keys = manager.feed(output)
            except Refused as error:
                raise LabError(f"MokManager did not enrol the certificate: {error}") from None
            for key in keys:
                time.sleep(_BETWEEN_KEYS)
                port.type(key)
