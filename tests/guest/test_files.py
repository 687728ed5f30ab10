"""Files in and out of a real guest: cp, OpenSSH's own configuration, collected files, forwarded ports."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.guest.conftest import Lab

LAB = """\
name: t
guests:
  debian: {image: debian-12, cpus: 2, memory: 1G, forward: ["22"]}
modules:
  hello:
    source: hello
    exercise:
      - {name: leave, run: "mkdir -p out; echo 1,2 > out/a.csv; ln -s /etc/hostname out/link; mkfifo out/pipe; : > 'out/..'$(printf '\\\\n')x"}
      - {name: fail, run: "false"}
    collect: ["out/*", /sys/module/hello/version, /proc/version, /no/such]
    expect: test-failed
"""  # noqa: E501


def banner(port: int) -> bytes:
    """What the server behind a port of this host says first."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        return connection.recv(64)


def test_files_go_in_and_out_of_a_guest(lab: Lab, hello: Path, tmp_path: Path) -> None:
    lab.write(LAB.replace("expect: test-failed", "expect: {outcome: test-failed}"))
    result = lab("run", str(hello), "--json").result
    assert [(each["name"], each["outcome"]) for each in result["exercises"]] == [("leave", "ok"), ("fail", "failed")]
    collected = {each["path"]: each for each in result["collected"]}
    folder = Path(result["artifacts"]["directory"])
    assert (folder / collected["out/a.csv"]["file"]).read_text() == "1,2\n"
    assert (folder / collected["/proc/version"]["file"]).read_text().startswith("Linux version 6.1")
    assert "out/pipe" not in collected, "a pipe is no regular file"
    assert all(path.is_file() and not path.is_symlink() for path in (folder / "collected").iterdir())

    record = lab("status", "--json").json["guests"][0]["record"]
    assert banner(record["forwarded"]["22"]).startswith(b"SSH-2.0-")

    source = tmp_path / "a folder"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "-x;y").write_text("in\n")
    lab("cp", str(source), "debian:/root/")
    assert lab("ssh", "debian", "--json", "--", "cat", "'/root/a folder/deep/-x;y'").json["output"] == "in\n"
    lab("ssh", "debian", "--", "ln -s /etc/shadow /root/shadow; mkdir -p /root/tree; ln -s / /root/tree/up; :")
    back = tmp_path / "back"
    back.mkdir()
    lab("cp", "debian:/root/a folder", "debian:/proc/version", str(back), "--json")
    assert (back / "a folder" / "deep" / "-x;y").read_text() == "in\n"
    lab("cp", "debian:/root/shadow", str(back))
    assert not (back / "shadow").is_symlink()
    failed = lab("cp", "debian:/no/such", str(back), code=3)
    assert "scp ended with code" in failed.err

    written = lab("ssh-config", "--json").json
    for name in ("debian", "debian.t"):
        argv = ["ssh", "-F", written["file"], name, "uname", "-n"]
        assert subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    assert lab("ssh-config", "debian").out == written["text"]


def test_a_port_that_is_taken_is_said(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        lab.write(f'name: t\nguests:\n  debian: {{image: debian-12, cpus: 2, memory: 1G, forward: ["{port}:80"]}}\n')
        ended = lab("up", code=3)
    assert f"port {port} of this host cannot be forwarded to port 80 of the guest" in ended.err
