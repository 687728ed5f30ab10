"""Secure Boot in real guests: what its kernels take and refuse, who else can read our signatures, where the key is not.

One guest on Debian 12's 6.1, its key enrolled offline, and one on a newer kernel, its key enrolled through MokManager's
own screens: a lab of their own, as a key belongs to one lab.
"""

from __future__ import annotations

import mmap
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kmlab.common import paths
from kmlab.common.events import Deadline
from kmlab.host.hypervisor import hypervisor
from kmlab.host.key_files import KeyPair, load_pair
from kmlab.kernel.signing.signature import MAGIC, TRAILER, signed_content
from kmlab.provision.guest import read_record
from tests.guest.conftest import REPOSITORY, Lab

HELLO = str(REPOSITORY / "examples/hello")
GUESTS = """\
name: sb
default: secure
guests:
  secure: {image: debian-12, cpus: 2, memory: 1G, secure_boot: true}
  debian: {image: debian-12, cpus: 2, memory: 1G}
  newer: {image: debian-12, kernel: "6.12", cpus: 2, memory: 1G, secure_boot: true}
"""
REFUSED = {"no": "is not signed", "wrong-key": "not enrolled", "altered": "altered after", "stripped": "stripped off"}
STATE = "cat /sys/module/module/parameters/sig_enforce /sys/kernel/security/lockdown; mokutil --sb-state"


@pytest.fixture(scope="module")
def secure(base: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with these guests; they go on from test to test."""
    made = Lab(tmp_path_factory.mktemp("sb") / "lab.yaml", environment)
    made.write(GUESTS)
    yield made
    records = [
        read_record(paths.GuestFiles(path)) for path in (made.state / "labs").glob("sb-*/[sn]e*") if path.is_dir()
    ]
    made("destroy", code=None)
    # Nobody else has this lab's key, so nobody else will ever use them.
    for record in records:
        if record is not None:
            paths.remove_tree(paths.checkpoints() / record.checkpoint)


def pair_of(lab: Lab) -> KeyPair:
    (folder,) = (lab.state / "keys").glob("sb-*")
    return load_pair(folder / "mok.key", folder / "mok.der")


def test_each_way_of_signing_ends_as_it_must_with_secure_boot_on_and_off(secure: Lab) -> None:
    told = secure("test", "--secure-boot-matrix", HELLO, "--json", timeout=600).json
    happened = {(cell["guest"], cell["way"]): cell["happened"] for cell in told["cells"]}
    assert happened == {
        **{("secure", way): "refused" for way in REFUSED},
        ("secure", "mok"): "loads",
        **{("debian", way): "loads, taints (E)" for way in (*REFUSED, "mok")},
    }
    assert told["ok"]
    for cell in told["cells"]:
        if cell["guest"] == "secure":
            assert cell["kernel"].startswith("6.1.")
            assert REFUSED.get(cell["way"], "") in (cell["reason"] or ""), cell
            assert "UNSIGNED_MODULE" not in cell["taint"]


def test_the_guest_enforces_and_its_status_says_by_which_firmware(secure: Lab) -> None:
    secure("up", "secure")
    assert secure("ssh", "secure", "--", STATE).out.split("\n")[:3] == [
        "Y",
        "none [integrity] confidentiality",
        "SecureBoot enabled",
    ]
    (record,) = [g["record"] for g in secure("status", "secure", "--json").json["guests"]]
    assert record["firmware"].startswith("Secure Boot")


def test_a_run_signs_by_itself_and_others_can_read_the_signature(secure: Lab, tmp_path: Path) -> None:
    result = secure("run", HELLO, "--json").result
    assert [s["name"] for s in result["steps"]] == ["sync", "build", "sign", "load", "unload"]
    assert result["taint"]["after"] == ["OOT_MODULE"]
    place = "/var/lib/kmlab/modules/hello/hello.ko"
    told = secure(
        "ssh", "secure", "--", f"modinfo -F signer {place}; modinfo -F sig_hashalgo {place}; base64 -w0 {place}"
    )
    signer, digest, encoded = told.out.splitlines()
    pair = pair_of(secure)
    assert (signer, digest) == (pair.certificate.subject.rfc4514_string().removeprefix("CN="), "sha256")
    signed = subprocess.run(["base64", "-d"], input=encoded.encode(), capture_output=True, check=True).stdout
    content = signed_content(signed)
    (tmp_path / "ko").write_bytes(content)
    (tmp_path / "p7s").write_bytes(signed[len(content) : -len(MAGIC) - TRAILER.size])
    (tmp_path / "pem").write_bytes(pair.certificate.public_bytes(Encoding.PEM))
    trust = ["-certfile", "pem", "-nointern", "-noverify", "-out", os.devnull]
    argv = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "p7s", "-content", "ko", *trust]
    verified = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr


def test_what_explain_foresees_of_a_file_is_what_comes(secure: Lab, tmp_path: Path) -> None:
    (built,) = (secure.state / "labs").glob("sb-*/secure/build/hello/hello.ko")
    for way, expected in (("unsigned", False), ("signed", True)):
        file = tmp_path / way / "hello.ko"
        file.parent.mkdir()
        file.write_bytes(built.read_bytes())
        if expected:
            secure("sign", str(file))
        told = secure("sign", "--explain", str(file), "--json").json["files"][0]
        would = {guest["guest"]: guest["loads"] for guest in told["guests"]}
        assert (would["secure"], would["debian"]) == (expected, True), told
        with file.open("rb") as content:
            line = "cat > /run/hello.ko && insmod /run/hello.ko && rmmod hello"
            code = subprocess.run(
                secure.command("ssh", "secure", "--", line), stdin=content, env=secure.environment, check=False
            ).returncode
        assert (code == 0) is expected


def test_the_private_key_is_nowhere_but_in_the_lab_s_state(secure: Lab) -> None:
    directory = Path(secure("run", HELLO, "--json").result["artifacts"]["directory"])
    token = os.urandom(16).hex()
    half = len(token) // 2
    line = f"printf %s%s {shlex.quote(token[:half])} {shlex.quote(token[half:])} > /root/token; sync; sleep 1"
    secure("ssh", "secure", "--", line)
    (root,) = (secure.state / "labs").glob("sb-*/secure")
    files = paths.GuestFiles(root)
    record = read_record(files)
    assert record is not None
    ram = root / "ram"
    with hypervisor.opened(record.uri, files.libvirt, Deadline(30)) as hv:
        assert hv.monitor(record.domain, f'pmemsave 0 {1 << 30} "{ram}"').strip() == ""
    pair = pair_of(secure)
    numbers = pair.key.private_numbers()
    public = pair.key.public_key().public_numbers().n.to_bytes(256, "big")
    pem = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).splitlines()
    secret = {
        "DER": pair.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())[26:],
        "PEM": pem[len(pem) // 2],
        **{
            f"{name}, {order}": value.to_bytes((value.bit_length() + 7) // 8, order)
            for name, value in (("p", numbers.p), ("q", numbers.q), ("d", numbers.d))
            for order in ("big", "little")
        },
    }
    checkpoint, baked = paths.checkpoints() / record.checkpoint, paths.bases() / record.base
    places = [root, directory, checkpoint, baked, secure.state / "labs"]
    everything = {path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()}
    found = {(str(path), name) for path in everything for name in found_in(path, secret)}
    assert found == set()
    # The same search finds what is there.
    assert found_in(ram, {"its public half": public, "the token": token.encode()}) == ["its public half", "the token"]
    assert found_in(checkpoint / "memory", {"its public half": public})
    assert found_in(files.nvram, {"its public half": public})
    assert found_in(files.disk, {"the token": token.encode()})
    ram.unlink()


def found_in(path: Path, needles: dict[str, bytes]) -> list[str]:
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [name for name, needle in needles.items() if content.find(needle) >= 0]


def test_on_a_newer_kernel_with_the_key_enrolled_through_mokmanager_it_is_the_same(secure: Lab) -> None:
    told = secure("sign", "--mok", "--guest", "newer", "--via-mokmanager", "--json", timeout=900).json
    assert told["guests"] == [{"guest": "newer", "enrolled": True, "what": "the key is enrolled"}]
    good = secure("run", HELLO, "--guest", "newer", "--json", timeout=600).result
    assert good["outcome"] == "pass" and good["kernel"].startswith("6.12.")
    assert good["taint"]["after"] == ["OOT_MODULE"]
    for way, words in REFUSED.items():
        chosen = ["--no-sign"] if way == "no" else ["--sign-with", way]
        result = secure("run", HELLO, "--guest", "newer", *chosen, "--json", code=1).result
        assert (result["outcome"], result["failure"]) == ("load-failed", "signature")
        assert words in result["reason"], result["reason"]
    said = secure("ssh", "newer", "--", STATE).out.split("\n")
    assert said[:3] == ["Y", "none [integrity] confidentiality", "SecureBoot enabled"]
