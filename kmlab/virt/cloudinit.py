"""The NoCloud seed of a base: user-data and meta-data as text (https://cloudinit.readthedocs.io/)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def seed_files(
    user_data: str, *, script: str, values: Mapping[str, Sequence[str]], authorized_key: str, instance: str
) -> dict[str, str]:
    """The files of the seed. `values` fill in the @NAME@ of the script, each quoted for the shell."""
    config: dict[str, Any] = yaml.safe_load(user_data) or {}
    # The image's own user, who may use sudo, and root.
    config["ssh_authorized_keys"] = [*config.get("ssh_authorized_keys", []), authorized_key]
    config["users"] = [
        *config.get("users", ["default"]),
        # Not locked: without PAM sshd takes a "!" in the password field for a locked account, key or not.
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
