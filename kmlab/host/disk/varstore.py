"""Write a guest's UEFI variable store with an enrolled key, before the guest first boots.

This runs the program of virt-firmware (https://gitlab.com/kraxel/virt-firmware), which is GPL-2.0 and therefore not
imported. A store that a running guest uses is never edited.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline
from kmlab.host.process import command

_OWNER = "5a6ecb8e-6f4d-4f0b-9e0e-6b6d6c616201"
"""The owner of the key in the signature list. It can be any GUID (UEFI specification, EFI_SIGNATURE_DATA)."""


def make_store(template: Path, certificate: Path, target: Path, deadline: Deadline) -> None:
    """Write a copy of `template` to `target` with the certificate (DER) in MokList, as MokManager would store it."""
    argv: list[str | Path] = [sys.executable, "-m", "virt.firmware.vars", "--input", template]
    argv += ["--add-mok", _OWNER, certificate, "--output", target]
    try:
        command.run(argv, deadline=deadline)
    except CommandFailed as error:
        lines = error.tail.strip().splitlines()
        raise LabError(
            f"cannot enrol {certificate} in a copy of {template}: {lines[-1] if lines else 'virt-fw-vars failed'}",
            "run make setup to install virt-firmware; install the firmware's package again if the template is damaged",
        ) from error
    target.chmod(0o600)
