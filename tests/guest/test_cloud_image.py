"""A cloud image, from its publisher's server to a verdict: a made-up release, added by one file in images/.

The image is of the shape of Ubuntu 24.04's: see tests/cloudimage.py. The server is the suite's own.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from kmlab.common.events import Deadline
from tests.cloudimage import cloud_image
from tests.guest.conftest import FIRST_START, Lab
from tests.publisher import Authority, Publisher

GUESTS = """\
name: t
default: cloud
guests:
  cloud: {image: testix, cpus: 2, memory: 1G, disk: 6G}
  secure: {image: testix, cpus: 2, memory: 1G, disk: 6G, secure_boot: true}
"""
SERIAL = "20261101"
ASKED = """
echo root=$(df --output=size --block-size=1M / | tail -n 1)
echo boot=$(findmnt --noheadings --output LABEL /boot)
echo device=$(findmnt --noheadings --output SOURCE /)
echo passwords=$(grep -v '^[^:]*:[*!]' /etc/shadow | wc -l)
echo sudo=$(sudo -u ubuntu sudo -n id -u)
echo key=$(cat /home/ubuntu/.ssh/authorized_keys | wc -l)
echo plan=$(ls /etc/netplan | wc -l)
echo timer=$(systemctl is-enabled apt-daily.timer)
echo failed=$(systemctl --failed --no-legend --plain | cut -d' ' -f1)
"""


def test_a_published_image_becomes_a_guest_that_builds_and_judges_modules(
    environment: dict[str, str], publisher: Publisher, authority: Authority, hello: Path, tmp_path: Path
) -> None:
    image = cloud_image(Deadline(900)).read_bytes()
    publisher.publish(SERIAL, image)
    publisher.catalogue(tmp_path, family="ubuntu")
    trusting = {**environment, "SSL_CERT_FILE": str(authority.certificate)}
    lab = Lab(tmp_path / "lab.yaml", trusting)
    lab.write(GUESTS)

    # Into a cache of its own, so that it is fetched however often the suite ran before.
    elsewhere = Lab(lab.file, {**trusting, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    (pulled,) = elsewhere("image", "pull", "testix", "--json").json["images"]
    assert hashlib.sha256(Path(pulled["path"]).read_bytes()).digest() == hashlib.sha256(image).digest()
    assert [entry for entry in elsewhere("image", "verify", "--json").json["files"] if entry["problem"]] == []

    try:
        (guest,) = lab("up", "cloud", "--json", timeout=FIRST_START).json["guests"]
        result = lab("run", str(hello), "--json").result
        assert result["outcome"] == "pass" and result["kernel"] == guest["release"]
        said = lab("ssh", "cloud", "--", ASKED).out
        facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        assert 5 * 1024 < int(facts["root"]) < 6 * 1024, "the root was 1.7 GiB, and grows to the disk"
        assert facts["boot"] == "BOOT" and facts["device"] == "/dev/vda1"
        assert facts["passwords"] == "0" and facts["sudo"] == "0" and facts["key"] == "1"
        assert int(facts["plan"]) >= 1 and facts["timer"] == "masked" and facts["failed"] == ""
        assert as_its_own_user(lab, int(guest["port"]), "sudo -n id -un") == "root"
        lab("down", "cloud")
        # The same base behind shim and the signed GRUB that the image brought along.
        signed = lab("run", str(hello), "-g", "secure", "--json", timeout=FIRST_START).result
        assert signed["outcome"] == "pass" and "UNSIGNED_MODULE" not in signed["taint"]["after"]
        refused = lab("run", str(hello), "-g", "secure", "--no-sign", "--json", code=1).result
        assert refused["outcome"] == "load-failed" and "is not signed" in refused["reason"]
    finally:
        lab("destroy", code=None)


def as_its_own_user(lab: Lab, port: int, command: str) -> str:
    """What ssh(1) brings back of a command, by the person's key and nothing else."""
    options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    words = [word for option in (*options, "LogLevel=ERROR") for word in ("-o", option)]
    argv = ["ssh", *words, "-i", str(lab.state / "keys" / "id_ed25519"), "-p", str(port), "ubuntu@127.0.0.1", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout or done.stderr).strip()
