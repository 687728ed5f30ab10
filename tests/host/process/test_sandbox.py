"""Test the sandbox, the untrusted folder whose links are not followed, and the toolchain of a base."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ImageError, LabError
from kmlab.common.events import Deadline, Event, Note, silent
from kmlab.host.disk import disks
from kmlab.host.process import command, footprint, sandbox
from kmlab.host.process.sandbox import Limits, Sandbox
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.provision.bases.toolchain import check_toolchain, ensure_toolchain, sweep_toolchains, toolchain_for
from kmlab.provision.guest import GuestRecord
from kmlab.run.build.delivery import mirror

PROGRAMS = ("sh", "cat", "ls", "touch", "sleep", "tail", "id", "dd", "mkdir", "ln", "setpriv", "uname", "unshare")
SMALL = Limits(memory=256 << 20, processes=64, file=8 << 20, output=1 << 20)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a shell and little else: this host's own programs and the libraries that they name."""
    folder = tmp_path_factory.mktemp("root")
    folder.chmod(0o755)
    for place in (*sandbox.PLACES, "usr/bin"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "bin").symlink_to("usr/bin")
    for program in PROGRAMS:
        source = command.find(program)
        shutil.copy(source, folder / "usr/bin" / program)
        for word in command.run(["ldd", source], deadline=Deadline(10)).output.split():
            if word.startswith("/"):
                (folder / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, folder / word[1:])
    return folder


@pytest.fixture
def box(root: Path, tmp_path: Path) -> Sandbox:
    (tmp_path / "hello").mkdir()
    return Sandbox(root, tmp_path / "hello", "hello", SMALL)


def shell(box: Sandbox, line: str, seconds: float = 20) -> sandbox.SandboxResult:
    return box.run(["sh", "-c", line], Deadline(seconds))


def test_a_sandbox_that_can_be_made_here_runs_a_program(box: Sandbox) -> None:
    sandbox.check()
    assert shell(box, "true") == sandbox.SandboxResult(0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "Linux"),
        ("-r", "6.1.0-9-guest's"),
        ("--kernel-release", "6.1.0-9-guest's"),
        ("-sr", "Linux 6.1.0-9-guest's"),
        ("-m", os.uname().machine),
        ("-r -s", "Linux 6.1.0-9-guest's"),
        ("-a", f"Linux lab 6.1.0-9-guest's #1 SMP {os.uname().machine} GNU/Linux"),
    ],
)
def test_uname_prints_the_guest_s_kernel_for_makefiles(box: Sandbox, options: str, said: str) -> None:
    ended = shell(dataclasses.replace(box, release="6.1.0-9-guest's"), f"uname {options}")
    assert (ended.code, ended.output.strip()) == (0, said)


@pytest.mark.parametrize(
    "options", ["--user", "--user --map-root-user --mount", "--mount", "--net --user", "--user --fork"]
)
def test_a_sandbox_cannot_make_namespaces_of_its_own(box: Sandbox, options: str) -> None:
    ended = shell(box, f"unshare {options} true; echo code $?")
    assert ended.output.strip().endswith("code 1"), ended.output


def test_a_sandbox_cannot_clone_into_a_user_namespace(box: Sandbox, tmp_path: Path) -> None:
    program = tmp_path / "hello" / "clone.c"
    program.write_text(
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <signal.h>\n#include <errno.h>\n#include <unistd.h>\n"
        "#include <sys/syscall.h>\n#include <sys/wait.h>\n"
        "int main(void) { long args[8] = {CLONE_NEWUSER};"
        "long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);"
        "if (pid == 0) _exit(0); if (pid > 0) return 1;"
        "pid = syscall(435, args, 64); if (pid == 0) _exit(0); if (pid > 0) return 2; return 0; }\n"
    )
    command.run(["gcc", "-static", "-o", program.with_suffix(""), program], deadline=Deadline(30))
    assert shell(box, "./clone").code == 0


def test_without_a_guest_uname_prints_the_host_s_kernel(box: Sandbox) -> None:
    assert shell(box, "uname -r").output.strip() == os.uname().release


def test_a_program_sees_its_root_and_no_files_of_the_user(box: Sandbox) -> None:
    ended = shell(box, "ls /; ls /root /tmp; ls /var/lib/kmlab/modules; ls /proc/1/root/home; ls -d $HOME; pwd")
    assert str(Path.home()) == "/root" or str(Path.home()) not in ended.output
    assert {"usr", "bin", "proc", "hello"} <= set(ended.output.split())
    assert "home:" not in ended.output.split()
    assert ended.output.endswith("/root\n/var/lib/kmlab/modules/hello\n")


def test_the_environment_of_the_user_stays_outside(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "hush")
    assert "hush" not in shell(box, "export -p; cat /proc/1/environ").output


def test_there_is_no_network(box: Sandbox) -> None:
    interfaces = shell(box, "cat /proc/net/dev").output.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_only_the_folder_is_writable(box: Sandbox) -> None:
    ended = shell(box, "for f in /x /usr/x /dev/x /etc/x ../x; do touch $f && echo wrote $f; done; touch inside")
    assert "wrote" not in ended.output
    assert (box.folder / "inside").exists()


def test_it_has_no_privileges_and_cannot_get_any(box: Sandbox) -> None:
    status = shell(box, "cat /proc/self/status").output
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["CapEff"] == facts["CapPrm"] == facts["CapInh"] == facts["CapAmb"] == "0" * 16
    assert facts["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "file", ["sys/kernel/core_pattern", "sys/kernel/modprobe", "sysrq-trigger", "self/oom_score_adj"]
)
def test_nothing_of_the_hosts_kernel_can_be_set_even_by_root(box: Sandbox, file: str) -> None:
    # Opens it for writing and writes nothing: where the sandbox leaks, this test must not do what it forbids.
    assert shell(box, f": >> /proc/{file}").code != 0


def test_the_exit_code_and_both_streams_come_back(box: Sandbox) -> None:
    assert shell(box, "echo out; echo err >&2; exit 7") == sandbox.SandboxResult(7, "out\nerr\n")


def test_an_endless_program_ends_at_the_deadline_with_its_output(box: Sandbox) -> None:
    assert shell(box, "echo here; while :; do :; done", 1) == sandbox.SandboxResult(None, "here\n")


def test_background_processes_end_with_it(box: Sandbox) -> None:
    shell(box, "(while :; do echo x >> alive; sleep 0.05; done) > /dev/null 2>&1 & sleep 0.3")
    before = (box.folder / "alive").stat().st_size
    shell(box, "sleep 0.3")
    assert (box.folder / "alive").stat().st_size == before > 0


def test_the_kernel_itself_limits_the_processes_even_for_root(box: Sandbox) -> None:
    # Sixty at most, whether or not the limit holds: a bomb would be the test's own end where it does not.
    line = "ulimit -p 20 2>/dev/null || ulimit -u 20; i=0; while [ $i -lt 60 ]; do sleep 3 & i=$((i+1)); done; echo all"
    ended = shell(box, line)
    assert "all" not in ended.output


def test_a_fork_bomb_ends_at_its_limit(box: Sandbox) -> None:
    # More than kmlab allows, fewer than the kernel does: with no bound but the kernel's, it may end by itself.
    line = "i=0; while [ $i -lt 100 ]; do sleep 20 & i=$((i+1)); done; wait"
    ended = shell(box, line, 15)
    assert ended.limit == "64 processes"


def test_a_bomb_that_is_faster_than_the_checks_ends_at_the_kernel_s_limit(box: Sandbox) -> None:
    ended = shell(box, "bomb() { bomb & bomb & sleep 20; }; bomb 2> /dev/null", 15)
    assert ended.limit == "64 processes" or ended.code != 0


def test_one_memory_hog_gets_no_more_memory(box: Sandbox) -> None:
    ended = shell(box, "tail /dev/zero")
    assert ended.code not in (0, None)


def test_many_memory_hogs_together_end_at_the_limit(box: Sandbox) -> None:
    hog = "dd if=/dev/zero of=/dev/null bs=180M count=100000 2> /dev/null"
    ended = shell(box, f"{hog} & {hog} & {hog} & wait", 15)
    assert ended.limit == "0.2 GiB of memory"


HOGS = {
    "a memfd": "int f = memfd(); for (int i = 0; i < 320; i++) fill(f);",
    "memfds": "for (int i = 0; i < 80; i++) { int f = memfd(); for (int j = 0; j < 4; j++) fill(f); }",
    "memfds, mapped and closed": (
        "for (int i = 0; i < 80; i++) { int f = memfd(); for (int j = 0; j < 4; j++) fill(f);"
        " mmap(0, 4096, PROT_READ, MAP_SHARED, f, 0); close(f); }"
    ),
    "mappings that only a child still has": (
        "for (int j = 0; j < 5; j++) if (!fork()) for (int i = 0; i < 9; i++) {"
        " use(mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)); if (fork()) _exit(0); }"
    ),
    "System V, attached": (
        "for (int j = 0; j < 5; j++) if (!fork()) { for (int i = 0; i < 9; i++) use(segment()); pause(); }"
    ),
    "System V, detached": "for (int i = 0; i < 40; i++) { char *p = segment(); use(p); shmdt(p); }",
    "ordinary memory": "for (int i = 0; i < 8; i++) if (!fork()) for (int j = 0; j < 5; j++) use(malloc(8 << 20));",
    "files in /tmp": 'for (int i = 0; i < 320; i++) fill(file("/tmp/%d", i));',
    "files in /root": 'for (int i = 0; i < 320; i++) fill(file("/root/%d", i));',
}
"""Each would take 320 MiB, and then stays as it is."""
HOG = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>
static char block[1 << 20];
int memfd(void) { return memfd_create("x", 0); }
int file(char *format, int n) { char name[32]; sprintf(name, format, n); return open(name, O_CREAT | O_WRONLY, 0600); }
char *segment(void) { return shmat(shmget(IPC_PRIVATE, 8 << 20, IPC_CREAT | 0600), 0, 0); }
void use(char *p) { if (!p || p == (char *)-1) for (;;) pause(); memset(p, 1, 8 << 20); usleep(20000); }
void fill(int f) { memset(block, 1, sizeof(block)); if (write(f, block, sizeof(block)) <= 0) pause(); usleep(2000); }
int main(void) { %s for (;;) pause(); }
"""


@pytest.mark.parametrize("kind", HOGS)
def test_memory_of_every_kind_ends_at_the_limit(
    box: Sandbox, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():  # to whom some of it has no owner
        monkeypatch.setattr(sandbox, "_MAX_UNEXPLAINED", 128 << 20)
    (tmp_path / "hog.c").write_text(HOG % HOGS[kind])
    command.run(["gcc", "-static", "-w", "-o", box.folder / "hog", tmp_path / "hog.c"], deadline=Deadline(60))
    little = dataclasses.replace(SMALL, memory=128 << 20, file=1 << 30)
    ended = shell(dataclasses.replace(box, limits=little), "./hog", 20)
    assert ended.limit == "0.1 GiB of memory", ended


def test_memory_without_a_visible_owner_counts_for_the_sandbox(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    told = footprint.Footprint(1, 1 << 20, 0, 6 << 30)
    monkeypatch.setattr(footprint.MemoryMeter, "measure", lambda self, first: told)
    assert shell(box, "sleep 20", 20).limit == "0.2 GiB of memory"
    monkeypatch.setattr(footprint.MemoryMeter, "measure", lambda self, first: told._replace(unexplained=2 << 30))
    assert shell(box, "sleep 0.5", 20) == sandbox.SandboxResult(0, "")


def test_very_many_files_end_at_the_limit(box: Sandbox) -> None:
    few = dataclasses.replace(SMALL, files=2000)
    line = "i=0; while :; do : > {}/$i; i=$((i+1)); done"
    for place in (".", "/tmp"):
        ended = shell(dataclasses.replace(box, limits=few), line.format(place), 20)
        assert ended.limit == "2000 files", (place, ended)


def test_a_sandbox_that_cannot_be_checked_ends_in_an_error(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: footprint.MemoryMeter, first: int) -> footprint.Footprint:
        raise MemoryError

    monkeypatch.setattr(footprint.MemoryMeter, "measure", fail)
    with pytest.raises(LabError, match="the sandbox could not be watched: this host has no memory left"):
        shell(box, "sleep 20", 20)


def test_a_file_grows_no_further_than_its_limit(box: Sandbox) -> None:
    shell(box, "dd if=/dev/zero of=big bs=1M count=100")
    assert (box.folder / "big").stat().st_size == SMALL.file


@pytest.mark.parametrize("flood", ["while :; do echo nothing in particular; done", "cat /dev/zero"])
def test_a_flood_of_output_ends_at_its_limit(box: Sandbox, flood: str) -> None:
    heard: list[str] = []
    ended = box.run(["sh", "-c", flood], Deadline(20), on_line=heard.append)
    assert ended.limit == "1 MiB of output"
    assert sum(map(len, heard)) <= SMALL.output


# --- the folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("keep me")
    return folder


@pytest.fixture
def beneath(tmp_path: Path) -> Iterator[UntrustedFolder]:
    with UntrustedFolder(tmp_path / "work") as folder:
        yield folder


def test_a_file_is_not_written_through_a_link_in_the_place_of_its_folder(
    tmp_path: Path, beneath: UntrustedFolder, outside: Path
) -> None:
    (tmp_path / "work/sub").symlink_to(outside)
    beneath.put_file("sub/precious", b"new", 0o644, 10**18)
    assert (outside / "precious").read_text() == "keep me"
    assert (tmp_path / "work/sub/precious").read_text() == "new"
    assert (tmp_path / "work/sub/precious").stat().st_mtime_ns == 10**18


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path, beneath: UntrustedFolder, outside: Path) -> None:
    (tmp_path / "work/a.c").symlink_to(outside / "precious")
    beneath.put_file("a.c", b"new", 0o640, 10**18)
    assert (outside / "precious").read_text() == "keep me"
    assert (tmp_path / "work/a.c").stat().st_mode & 0o777 == 0o640


def test_a_read_only_file_can_be_written_by_make(tmp_path: Path) -> None:
    with UntrustedFolder(tmp_path) as folder:
        folder.put_file("modules.order", b"", 0o444, 10**18)
    assert (tmp_path / "modules.order").stat().st_mode & 0o777 == 0o644


def test_removing_a_folder_leaves_what_its_links_lead_to(
    tmp_path: Path, beneath: UntrustedFolder, outside: Path
) -> None:
    (tmp_path / "work/sub/deep").mkdir(parents=True)
    (tmp_path / "work/sub/deep/out").symlink_to(outside)
    (tmp_path / "work/sub/deep").chmod(0)
    beneath.remove("sub")
    assert not (tmp_path / "work/sub").exists()
    assert (outside / "precious").exists()


def test_links_and_pipes_are_not_read(tmp_path: Path, beneath: UntrustedFolder, outside: Path) -> None:
    (tmp_path / "work/a.ko").symlink_to(outside / "precious")
    (tmp_path / "work/out").symlink_to(outside)
    os.mkfifo(tmp_path / "work/b.ko")
    (tmp_path / "work/c.ko").write_bytes(b"module")
    assert [path for path, _ in beneath.files()] == ["c.ko"]
    assert beneath.read("a.ko", 100) is beneath.read("b.ko", 100) is None
    assert beneath.read("c.ko", 3) == b"mod"


def test_a_mirror_copies_what_changed_keeps_what_make_left_and_removes_what_vanished(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "builds/hello"
    (source / "sub").mkdir(parents=True)
    for name in ("a.c", "sub/b.c", "odd \udcff\n.h"):
        (source / name).write_text(name.encode("utf-8", "surrogateescape").hex())
    (source / "link").symlink_to("a.c")
    assert mirror(source, target) == (4, 0)
    assert mirror(source, target) == (0, 0)
    (target / "a.o").write_text("made")
    (source / "a.c").write_text("changed")
    (source / "sub/b.c").unlink()
    assert mirror(source, target) == (1, 1)
    assert sorted(os.listdir(target)) == sorted(["a.c", "a.o", "link", "odd \udcff\n.h", "sub"])
    assert (target / "a.c").stat().st_mtime_ns == (source / "a.c").stat().st_mtime_ns
    assert os.readlink(target / "link") == "a.c"


# --- the toolchain -------------------------------------------------------------------------------------------------

KEY, RELEASE = "0123456789abcdef", "6.1.0-0-test-amd64"


@pytest.fixture
def small_base(xdg: Path, tmp_path: Path) -> Path:
    """A base whose disk has the shape of the real ones, with empty programs."""
    tree = tmp_path / "tree"
    headers = f"usr/src/linux-headers-{RELEASE}"
    files = ("usr/bin/make", "usr/bin/gcc-12", f"{headers}/Makefile", "usr/share/doc/gcc/README", "etc/shadow")
    for name in (*files, f"usr/lib/modules/{RELEASE}/kernel/big.ko", "usr/lib/gcc/cc1", "root/.secret", "etc/passwd"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "usr/bin/make").chmod(0o755)
    (tree / "lib").symlink_to("usr/lib")
    (tree / "bin").symlink_to("usr/bin")
    (tree / f"usr/lib/modules/{RELEASE}/build").symlink_to(f"/{headers}")
    image, note = tmp_path / "root.img", tmp_path / "note"
    note.write_text("esp")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    command.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image], deadline=Deadline(30))
    folder = paths.make_folder(paths.bases() / KEY)
    disks.make_disk(folder / "disk.qcow2", root=image, esp={"EFI/note": note}, deadline=Deadline(60))
    return folder


def test_a_toolchain_has_the_programs_and_headers_and_nothing_else(small_base: Path) -> None:
    root = ensure_toolchain(KEY, RELEASE, "debian", silent)
    assert root == paths.toolchains() / KEY / "root"
    assert os.access(root / "usr/bin/make", os.X_OK)
    assert (root / "bin/gcc-12").exists()
    assert os.readlink(root / f"lib/modules/{RELEASE}/build") == f"/usr/src/linux-headers-{RELEASE}"
    assert (root / f"usr/src/linux-headers-{RELEASE}/Makefile").exists()
    assert (root / "usr/lib/gcc/cc1").exists()
    assert (root / "etc/passwd").exists()
    for absent in ("etc/shadow", "root/.secret", "usr/share/doc", f"usr/lib/modules/{RELEASE}/kernel"):
        assert not (root / absent).exists()
    assert all((root / place).is_dir() for place in sandbox.PLACES)


def test_a_toolchain_is_made_once(small_base: Path) -> None:
    heard: list[Event] = []
    ensure_toolchain(KEY, RELEASE, "debian", heard.append)
    assert heard
    heard.clear()
    ensure_toolchain(KEY, RELEASE, "debian", heard.append)
    assert heard == []


@pytest.mark.parametrize("change", ["line", "mode", "new", "gone", "link"])
def test_a_toolchain_that_was_changed_is_made_again(small_base: Path, change: str) -> None:
    heard: list[Event] = []
    root = ensure_toolchain(KEY, RELEASE, "debian", heard.append)
    header = root / f"usr/src/linux-headers-{RELEASE}/Makefile"
    before = header.stat()
    if change == "line":
        header.write_bytes(b"X" + header.read_bytes()[1:])
        os.utime(header, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "mode":
        header.chmod(0o4755)
    elif change == "new":
        header.with_name("extra.h").touch()
    elif change == "gone":
        header.unlink()
    else:
        (root / "lib").unlink()
        (root / "lib").symlink_to("/tmp")
    heard.clear()
    assert ensure_toolchain(KEY, RELEASE, "debian", heard.append) == root
    assert any("because it has changed" in str(event) for event in heard)
    assert header.read_text() == f"usr/src/linux-headers-{RELEASE}/Makefile"
    assert os.readlink(root / "lib") == "usr/lib"
    assert not header.with_name("extra.h").exists()
    assert check_toolchain(root.parent, every_byte=True) is None


def test_a_base_without_headers_gives_no_toolchain_and_leaves_nothing(small_base: Path) -> None:
    with pytest.raises(ImageError, match=r"no headers of 9\.9"):
        ensure_toolchain(KEY, "9.9", "debian", silent)
    assert not (paths.toolchains() / KEY).exists()
    assert list((paths.work() / "toolchains").iterdir()) == []


def test_an_incomplete_toolchain_is_removed(small_base: Path) -> None:
    half = paths.make_folder(paths.work() / "toolchains" / f"{KEY[:12]}.abcd")
    (paths.work() / f"toolchain-{KEY}.lock").touch()
    sweep_toolchains()
    assert not half.exists()


def guest_record(**changed: object) -> GuestRecord:
    known: dict[str, object] = {
        **{name: "" for name in ("uri", "domain", "why", "firmware", "checkpoint", "host_key")},
        **{"name": "debian", "arch": os.uname().machine, "release": RELEASE, "accel": "tcg", "base": KEY},
        **{"port": 1, "tty": None, "pid": None, "started": 0.0},
    }
    return GuestRecord(**{**known, **changed})  # type: ignore[arg-type]


def test_auto_uses_the_sandbox_only_for_emulated_guests_of_the_hosts_architecture(
    small_base: Path,
) -> None:
    assert toolchain_for("auto", guest_record(), silent) == paths.toolchains() / KEY / "root"
    assert toolchain_for("auto", guest_record(accel="kvm"), silent) is None
    assert toolchain_for("auto", guest_record(arch="sparc64"), silent) is None
    assert toolchain_for("guest", guest_record(), silent) is None
    assert toolchain_for("sandbox", guest_record(accel="kvm"), silent) is not None


def test_auto_falls_back_to_the_guest_and_says_why(xdg: Path) -> None:
    heard: list[Event] = []
    assert toolchain_for("auto", guest_record(), heard.append) is None
    note = heard[-1]
    assert isinstance(note, Note) and "built in the guest" in note.text and "disk is missing" in note.text


def test_a_requested_sandbox_that_cannot_be_made_is_an_error(xdg: Path) -> None:
    with pytest.raises(LabError, match="sparc64") as caught:
        toolchain_for("sandbox", guest_record(arch="sparc64"), silent)
    assert caught.value.hint


def test_without_bubblewrap_auto_builds_in_the_guest(
    xdg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    heard: list[Event] = []
    assert toolchain_for("auto", guest_record(), heard.append) is None
    assert any(isinstance(event, Note) and "setting up uid map: Permission denied" in event.text for event in heard)
    with pytest.raises(LabError, match="uid map") as caught:
        toolchain_for("sandbox", guest_record(), silent)
    assert caught.value.hint is not None and "build: guest" in caught.value.hint
