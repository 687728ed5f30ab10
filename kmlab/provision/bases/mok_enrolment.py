"""Enrolling the lab's certificate as a person would: mokutil asks for it, MokManager is told yes at the next boot.

For guests whose store of variables is not ours to write. It takes three boots; `host.varstore` needs none.
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
"""Seconds: MokManager redraws its screen after each."""


def ask_for(shell: Shell, certificate: Path, deadline: Deadline) -> str:
    """Tell the guest's firmware that this certificate is to be enrolled, and switch the guest off; the password."""
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
        said = printable((answer.error_text or answer.text).strip(), 200)
        raise LabError(f"mokutil could not ask for the certificate: {said}", "is mokutil installed in the guest?")
    shell.run("systemctl poweroff", deadline)
    return password


def wait_until_off(hv: Hypervisor, name: str, deadline: Deadline) -> None:
    while hv.runs(name):
        if deadline.passed:
            raise LabError(f"the guest did not switch itself off within {deadline.seconds:.0f} s")
        time.sleep(0.3)


def answer_screens(hv: Hypervisor, name: str, password: str, stage: Stage, deadline: Deadline) -> None:
    """Go through MokManager's screens in the guest that has just been started, until it has rebooted."""
    device = serial_tty(hv.xml(name))
    if device is None:
        raise LabError("the guest has no serial port that can be typed into")
    manager = MokManager(password)
    with serialport.opened(device) as port:
        while not manager.done:
            stage.progress(detail=f"waiting for {manager.awaits}")
            said = port.read(deadline.within(5))
            if said is None or deadline.passed:
                how = "the guest ended" if said is None else f"{deadline.seconds:.0f} s were not enough"
                raise LabError(
                    f"MokManager was not gone through: {how} while waiting for {manager.awaits}",
                    "its shim may be of another version; enrol the certificate by hand: kmlab console",
                )
            try:
                keys = manager.feed(said)
            except Refused as error:
                raise LabError(f"MokManager did not enrol the certificate: {error}") from None
            for key in keys:
                time.sleep(_BETWEEN_KEYS)
                port.type(key)
