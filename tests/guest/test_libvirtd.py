"""The same lab on a libvirtd: in system mode as root, in session mode as anybody else. The test starts the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import REPOSITORY, Lab, wait_until

_QEMU_CONF = """
stdio_handler = "file"
security_driver = "none"
remember_owner = 0
dynamic_ownership = 0
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
"""


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "qemu:///session"
        return
    folder = Path(tempfile.mkdtemp(prefix="kmd", dir="/tmp"))
    (folder / "etc").mkdir()
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    settings = folder / "libvirtd.conf"
    settings.write_text(f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nlog_outputs = "3:file:{folder}/log"\n')
    Path("/etc/libvirt").mkdir(exist_ok=True)
    # In a mount namespace of its own, so that this host's own settings are neither read nor changed.
    line = 'mount --bind "$1/etc" /etc/libvirt && exec libvirtd --config "$1/libvirtd.conf" --pid-file "$1/pid"'
    daemon = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", line, "sh", str(folder)],
        stdout=(folder / "out").open("w"),
        stderr=subprocess.STDOUT,
    )
    wait_until("libvirtd's socket", lambda: (folder / "libvirt-sock").exists() or daemon.poll() is not None, 30)
    assert daemon.poll() is None, (folder / "out").read_text() + (folder / "log").read_text()
    yield f"qemu+unix:///system?socket={folder}/libvirt-sock"
    daemon.terminate()
    daemon.wait(20)
    shutil.rmtree(folder)


def test_a_lab_lives_on_a_libvirtd_as_it_does_embedded(lab: Lab, uri: str) -> None:
    answer = lab("run", str(REPOSITORY / "examples/hello"), "--connect", uri, "--json", timeout=900)
    assert answer.result["outcome"] == "pass"
    assert [r["text"] for r in answer.result["log"]][-2:] == ["Hello, world.", "Goodbye, world."]
    listed = subprocess.run(["virsh", "--connect", uri, "list", "--name"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert len(names) == 1 and names[0].startswith("kmlab-t-"), names
    again = lab("run", str(REPOSITORY / "examples/panic"), "-p", "reason=there", "--connect", uri, "--json", code=1)
    assert again.result["outcome"] == "panic"
    lab("up", "--connect", uri)
    assert lab("ssh", "--", "echo", "up").out == "up\n"
    # The sandbox's build folder is another user's on purpose when root runs kmlab; all else is the person's.
    others = [p for p in (lab.state / "labs").rglob("*") if p.lstat().st_uid != os.geteuid() and "build" not in p.parts]
    assert not others, "libvirt leaves no file of somebody else's"
    lab("destroy")
    listed = subprocess.run(
        ["virsh", "--connect", uri, "list", "--all", "--name"], capture_output=True, text=True, check=True
    )
    assert not listed.stdout.split()
