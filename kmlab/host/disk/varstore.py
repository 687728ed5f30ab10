"""Write a guest's UEFI variable store with an enrolled key, before the guest first boots.

This runs the program of virt-firmware (https://gitlab.com/kraxel/virt-firmware), which is GPL-2.0 and therefore not
imported. A store that a running guest uses is never edited.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline
from kmlab.host.process import command

_OWNER = "5a6ecb8e-6f4d-4f0b-9e0e-6b6d6c616201"
"""The owner of the key in the signature list. It can be any GUID (UEFI specification, EFI_SIGNATURE_DATA)."""
_MICROSOFT = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
"""The owner of Microsoft's certificates, as in Microsoft's own signature lists."""
_CERTIFICATES = "virt/firmware/certs/microsoft.com"
_CA_2023 = "ms-uefi-2023.pem"
"""Microsoft's certificate that signs new boot loaders since 2026. The one of 2011 expired on 2026-06-27."""
STORE_FORMAT = 2
"""Increased when stores that an older version of kmlab made have other keys."""


def make_store(
    template: Path,
    certificate: Path,
    target: Path,
    deadline: Deadline,
    *,
    enrolled: bool = True,
    format: str = "raw",
) -> None:
    """Write a copy of `template` to `target` with the certificate (DER) in MokList, as MokManager would store it.

    If the template has no keys (not `enrolled`), enrol Microsoft's and switch Secure Boot on. Otherwise add Microsoft's
    certificate of 2023 if it is missing. `format` is that of both files.
    """
    with tempfile.TemporaryDirectory(prefix="kmlab-vars-") as name:
        raw, store = Path(name) / "template.fd", Path(name) / "store.fd"
        try:
            command.run(["qemu-img", "convert", "-f", format, "-O", "raw", template, raw], deadline=deadline)
            argv: list[str | Path] = [sys.executable, "-m", "virt.firmware.vars", "--input", raw, "--output", store]
            argv += _microsoft_keys(raw) if enrolled else ["--enroll-microsoft", "--sb"]
            command.run([*argv, "--add-mok", _OWNER, certificate], deadline=deadline)
            command.run(["qemu-img", "convert", "-f", "raw", "-O", format, store, target], deadline=deadline)
        except CommandFailed as error:
            lines = error.tail.strip().splitlines()
            raise LabError(
                f"cannot enrol {certificate} in a copy of {template}: {lines[-1] if lines else 'virt-fw-vars failed'}",
                "run make setup to install virt-firmware; install the firmware's package again if the template is "
                "damaged",
            ) from error
    target.chmod(0o600)


def _microsoft_keys(template: Path) -> list[str | Path]:
    """Return the arguments that add Microsoft's certificate of 2023, if the template does not have it."""
    certificate = Path(str(metadata.distribution("virt-firmware").locate_file(f"{_CERTIFICATES}/{_CA_2023}")))
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    return [] if der in template.read_bytes() else ["--add-db", _MICROSOFT, certificate]
