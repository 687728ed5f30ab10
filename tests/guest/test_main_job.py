"""The main job in a real guest: up, run, status, log, ssh, reset, destroy, and what is kept between runs."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tests.guest.conftest import REPOSITORY, Lab, wait_until


def test_up_twice_is_the_same_as_once(repository: Lab) -> None:
    first = repository("up", "--json").json["guests"][0]
    second = repository("up", "--json").json["guests"][0]
    assert second == first
    assert first["port"] > 1023


def test_the_ports_of_a_guest_are_on_loopback_alone(repository: Lab) -> None:
    port = repository("up", "--json").json["guests"][0]["port"]
    table = Path("/proc/net/tcp").read_text().splitlines()
    listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


def test_hello_says_hello_and_goodbye(repository: Lab) -> None:
    result = repository("run", str(REPOSITORY / "examples/hello"), "--fresh", "--json").result
    texts = [record["text"] for record in result["log"]]
    assert texts[-2:] == ["Hello, world.", "Goodbye, world."]
    assert all(record["time"] > 0 and record["level"] for record in result["log"])
    assert result["taint"] == {"before": [], "after": ["OOT_MODULE", "UNSIGNED_MODULE"]}
    assert [s["name"] for s in result["steps"]] == ["sync", "build", "load", "unload"]
    assert result["outcome"] == "pass" and result["guest_survived"]
    assert result["kernel"].startswith("6.1.")


def test_the_headers_are_those_of_the_running_kernel(repository: Lab) -> None:
    said = repository("ssh", "--", "uname -r; ls -d /lib/modules/$(uname -r)/build/Makefile; cat /proc/cmdline").out
    release, makefile, cmdline = said.splitlines()
    assert makefile == f"/lib/modules/{release}/build/Makefile"
    assert "console=ttyS0" in cmdline


def test_an_image_from_packages_was_never_booted_to_become_a_base(repository: Lab) -> None:
    said = repository("ssh", "--", "ls -A /home /var/lib/cloud; grep -c . /root/.ssh/authorized_keys").out
    assert said.splitlines()[-1] == "1"
    assert "instance" not in said, "cloud-init was at work"
    assert "debian" not in said, "cloud-init made the image's own user"


def test_a_restored_guest_has_the_time_of_the_host_and_randomness_of_its_own(lab: Lab) -> None:
    seen = []
    for _ in range(2):
        lab("reset")
        answer = lab("ssh", "--", "date +%s; head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/boot_id")
        seen.append(answer.out.splitlines())
        assert abs(int(seen[-1][0]) - int(os.popen("date +%s").read())) < 20
    assert seen[0][1] != seen[1][1]
    assert seen[0][2] == seen[1][2], "both come from one checkpoint"


def test_status_log_and_ssh_work_while_a_run_is_on(repository: Lab) -> None:
    run = repository.start("run", str(REPOSITORY / "examples/hello"), "--exercise", "sleep 15; echo slept", "--json")

    def busy() -> bool:
        return bool(repository("status", "--json").json["guests"][0]["state"] == "busy")

    wait_until("the run to be under way", busy, 180)
    assert repository("ssh", "--", "echo", "inside").out == "inside\n"
    wait_until("the module to say hello", lambda: "Hello, world." in repository("log").out, 60)
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, out
    assert repository("status", "--json").json["guests"][0]["state"] == "clean"


def test_sync_sends_only_what_changed_and_takes_away_what_vanished(lab: Lab, hello: Path) -> None:
    odd = "a b'c\n-\u00e9"
    (hello / odd).write_text("odd\n")
    (hello / "-rf").write_text("dash\n")
    (hello / "link").symlink_to("hello.c")
    (hello / "out").symlink_to("/etc/hostname")
    (hello / "deep" / "er").mkdir(parents=True)
    (hello / "deep" / "er" / "tool.sh").write_text("#!/bin/sh\necho deep\n")
    (hello / "deep" / "er" / "tool.sh").chmod(0o750)
    first = lab(
        "run", str(hello), "--exercise", "deep/er/tool.sh && readlink link out && ls -1 --quoting-style=c", "--json"
    )
    log = (Path(first.result["artifacts"]["directory"]) / "exercise.log").read_text().splitlines()
    assert log[:3] == ["deep", "hello.c", "/etc/hostname"]
    assert '"-rf"' in log and any(line.startswith('"a b') and "\\n-" in line for line in log)

    (hello / odd).unlink()
    (hello / "deep" / "er" / "tool.sh").unlink()
    (hello / "deep" / "er").rmdir()
    (hello / "-rf").unlink()
    second = lab("run", str(hello), "--exercise", "test ! -e ./-rf && test ! -e deep/er && ls -1", "--json").result
    assert second["steps"][0]["detail"].startswith("0 sent"), second["steps"]
    third = lab("run", str(hello), "--json").result
    assert third["steps"][0]["detail"] == "nothing changed"
    assert not list(hello.glob("*.ko")), "nothing of a build comes back into the person's folder"


def test_parameters_with_spaces_and_arrays_arrive(lab: Lab) -> None:
    source = str(REPOSITORY / "examples/params")
    asked = ["-p", "my_str=two words", "-p", "my_int_array=7,8"]
    texts = [r["text"] for r in lab("run", source, *asked, "--json").result["log"]]
    assert any('my_str is "two words"' in text for text in texts), texts
    assert any("my_int_array[1] is 8" in text for text in texts)


def test_a_kept_module_is_found_loaded_and_unload_takes_it_out(lab: Lab, hello: Path) -> None:
    lab("run", str(hello), "--keep")
    assert "hello" in lab("ssh", "--", "cut -d' ' -f1 /proc/modules").out.split()
    texts = [r["text"] for r in lab("unload", str(hello), "--json").result["log"]]
    assert texts == ["Goodbye, world."]
    assert "hello" not in lab("ssh", "--", "cut -d' ' -f1 /proc/modules").out.split()


def test_a_build_error_is_on_the_persons_own_path(lab: Lab, hello: Path) -> None:
    text = (hello / "hello.c").read_text()
    (hello / "hello.c").write_text(text + "\nint broken(void) { return nothing; }\n")
    result = lab("run", str(hello), "--json", code=1).result
    assert result["outcome"] == "build-failed"
    error = next(d for d in result["diagnostics"] if d["severity"] == "error")
    assert (error["file"], error["line"]) == ("hello.c", text.count("\n") + 2)
    assert "nothing" in error["message"]


def test_a_makefile_that_only_wraps_kbuild_gets_what_it_asks_for(lab: Lab, hello: Path) -> None:
    source = hello / "driver"
    source.mkdir()
    (hello / "hello.c").rename(source / "hello.c")
    (hello / "Makefile").rename(source / "Kbuild")
    (source / "Kbuild").write_text("obj-m := hello.o\n")
    (hello / "Makefile").write_text(
        "ifndef KERNELDIR\n$(error KERNELDIR is not set)\nendif\n"
        "default:\n\t$(MAKE) -C $(KERNELDIR) M=$(PWD)/driver modules\n\t@echo for $(KVERSION) > driver/built\n"
    )
    result = lab("run", str(hello), "--json").result
    assert [r["text"] for r in result["log"]][-2:] == ["Hello, world.", "Goodbye, world."]
    assert result["steps"][1]["detail"] == "driver/hello.ko"


def test_two_guests_have_two_ports_and_share_one_base(lab: Lab) -> None:
    lab.write("name: t\nguests:\n  one: {image: debian-12}\n  two: {image: debian-12}\n")
    one, two = lab("up", "--all", "--json").json["guests"]
    assert one["port"] != two["port"] and one["base"] == two["base"] and one["checkpoint"] == two["checkpoint"]
    assert lab("ssh", "two", "--", "hostname").out == "lab\n"


def test_destroy_leaves_nothing(lab: Lab) -> None:
    record = lab("up", "--json").json["guests"][0]
    folder = next((lab.state / "labs").glob("t-*/debian"))
    assert any(stat.S_ISSOCK(p.stat().st_mode) for p in folder.rglob("*")), "a monitor socket is there while it runs"
    lab("destroy")
    assert not folder.exists()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # what is left is init's to reap
        assert Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    wait_until("init to reap it", lambda: not Path(f"/proc/{record['pid']}").exists())
    assert lab("status", "--json").json["guests"][0]["state"] == "stopped"
    lab("destroy")
