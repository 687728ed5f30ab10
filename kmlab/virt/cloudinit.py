"""Make the NoCloud seed of a base: user-data and meta-data as text (https://cloudinit.readthedocs.io/)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def seed_files(
    user_data: str, *, script: str, values: Mapping[str, Sequence[str]], authorized_key: str, instance: str
) -> dict[str, str]:
    """Return the seed's files by name. The words of `values`, joined by spaces, replace @NAME@ in `script`."""
    config: dict[str, Any] = yaml.safe_load(user_data) or {}
    # For the image's own user, who may use sudo, and for root.
    config["ssh_authorized_keys"] = [*config.get("ssh_authorized_keys", []), authorized_key]
    config["users"] = [
        *config.get("users", ["default"]),
        # Not locked: without PAM, sshd rejects an account with "!" in the password field, even with a key.
        {"name": "root", "lock_passwd": False, "ssh_authorized_keys": [authorized_key]},
    ]
    for name, words in values.items():
        script = script.replace(f"@{name}@", " ".join(words))
    config["write_files"] = [
        *config.get("write_files", []),
        {"path": "/run/kmlab/bake.sh", "permissions": "0700", "content": script},
    ]
    text = yaml.safe_dump(config, sort_keys=False, width=1000)
    return {
        "user-data": f"#cloud-config\n{text}",
        "meta-data": f"instance-id: {shlex.quote(instance)}\nlocal-hostname: lab\n",
        "network-config": 'version: 2\nethernets: {all: {match: {name: "e*"}, dhcp4: true}}\n',
    }
