"""Write the OpenSSH configuration of a lab's running guests (ssh_config(5))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.config.lab import Lab
from kmlab.host.channel.ssh import client_options
from kmlab.provision import cache, lifecycle


def write(lab: Lab, guests: Sequence[str] | None) -> Path:
    """Write the configuration of these guests, or of all that run. Raise LabError if one of them cannot be reached."""
    names = [lab.guest(name).name for name in guests] if guests else _running(lab)
    text = "".join(_block(lab, name) for name in names)
    file = lifecycle.lab_files(lab).root / "ssh_config"
    paths.write_text(file, text, 0o600)
    return file


def alias(guest: str) -> str:
    """Return the guest's name for OpenSSH, which takes what stands before an @ for a user: `debian.6.12`."""
    return guest.replace("@", ".")


def _running(lab: Lab) -> list[str]:
    names = [name for name in cache.guest_names(lab) if cache.guest_status(lab, name).running]
    if not names:
        raise LabError("no guest is running", "kmlab up")
    return names


def _block(lab: Lab, name: str) -> str:
    status = cache.guest_status(lab, name)
    record = status.record
    if record is None or not status.running:
        raise LabError(f"guest '{name}' is not running", "kmlab up")
    if record.port is None:
        raise LabError(f"guest '{name}' has no network, so ssh cannot reach it", "give it another `network:`")
    options = {
        "HostName": "127.0.0.1",
        "Port": str(record.port),
        "User": "root",
        **{
            key: _quoted(value) for key, value in client_options(status.files.known_hosts, paths.identity_key()).items()
        },
    }
    lines = "".join(f"  {key} {value}\n" for key, value in options.items())
    return f"Host {alias(name)} {alias(name)}.{lab.name}\n{lines}"


def _quoted(value: str) -> str:
    """Return a value of ssh_config. OpenSSH has no escape for a double quote in a path, and expands %."""
    if '"' in value or "\n" in value:
        raise ConfigError(f"{value!r}: OpenSSH cannot name this path", "set XDG_STATE_HOME to another folder")
    return f'"{value.replace("%", "%%")}"' if "/" in value else value
