"""A module's folder, brought into a guest as it is: with a shell that really runs the guest's lines."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import Answer, Shell
from kmlab.host.process.command import run as command_run
from kmlab.provision.guest import MODULES_FOLDER, Guest, GuestRecord
from kmlab.run.build import source_folder
from kmlab.run.build.make import check_folder
from kmlab.run.build.source_folder import Entry, read_folder, sync
from kmlab.testing import HOST_KEY, RELEASE, FakeModule, FakeShell, Machine, World

ODD = ("a b", "new\nline", "-rf", "quote'\"$(x)`", "Grüße.c", "back\\slash", "*", "..x", "\udcff\udcfe.c")


class LocalShell(Shell):
    """Runs a guest's lines with this host's sh; `folder` stands for the guest's folder of modules."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    alive = True

    def run(
        self,
        command: str,
        deadline: Deadline,
        *,
        data: bytes = b"",
        on_output: Callable[[bytes], None] | None = None,
        abandon: threading.Event | None = None,
    ) -> Answer:
        given = self._folder.with_suffix(".input")
        given.write_bytes(data)
        line = command.replace(str(MODULES_FOLDER), str(self._folder))
        done = command_run(["sh", "-c", line], deadline=deadline, stdin=given, accept=range(256))
        return Answer(done.code, done.output.encode(), done.output.encode())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "Kbuild").write_text("obj-m := a.o\n")
    (folder / "a.c").write_text("int a;\n")
    (folder / "sub" / "b.c").write_text("int b;\n")
    return folder


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest whose folder of modules is `there`."""
    record = GuestRecord(
        name="debian",
        uri="embedded",
        domain="kmlab",
        arch="x86_64",
        release=RELEASE,
        accel="kvm",
        why="",
        firmware="",
        base="",
        checkpoint="",
        port=1,
        host_key=HOST_KEY,
        tty=None,
        pid=None,
        started=0.0,
    )
    yield Guest(paths.GuestFiles(tmp_path / "guest"), record, LocalShell(tmp_path / "there"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The module's folder in the guest."""
    return tmp_path / "there" / "mod"


def send(guest: Guest, source: Path) -> tuple[int, int]:
    return sync(guest, "mod", source, Deadline(20))


def names(folder: Path) -> set[bytes]:
    return {
        os.path.relpath(os.path.join(parent, name), os.fsencode(folder))
        for parent, folders, files in os.walk(os.fsencode(folder))
        for name in (*folders, *files)
    }


# --- what is sent --------------------------------------------------------------------------------------------------


def test_all_of_a_folder_is_read(source: Path) -> None:
    (source / "link").symlink_to("sub/b.c")
    found = read_folder(source)
    assert set(found) == {"Kbuild", "a.c", "sub", "sub/b.c", "link"}
    assert (found["a.c"].kind, found["a.c"].size) == ("file", 7)
    assert found["link"] == Entry("link", 0o777, 0, 0, "sub/b.c")


def test_what_kbuild_left_is_skipped_and_sources_are_not(source: Path) -> None:
    made = ("a.o", ".a.o.cmd", "a.mod", ".a.mod.cmd", "a.mod.c", "a.mod.o", ".a.mod.o.cmd", "a.ko", ".a.ko.cmd")
    for name in made:
        (source / name).write_text("made")
    for name in ("blob.o", "firmware.o_shipped", "own.mod.c", ".clang-format"):
        (source / name).write_text("kept")
    for name in (".git", "__pycache__", ".tmp_versions", ".venv"):
        (source / name).mkdir()
        (source / name / "file").write_text("no")
    kept = {"Kbuild", "a.c", "sub", "sub/b.c", "blob.o", "firmware.o_shipped", "own.mod.c", ".clang-format"}
    assert set(read_folder(source)) == kept


def test_a_link_to_a_folder_is_a_link_and_is_not_entered(source: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    (source / "out").symlink_to(tmp_path / "outside")
    (source / "loop").symlink_to(".")
    found = read_folder(source)
    assert found["out"].kind == found["loop"].kind == "link"
    assert not any("secret" in path for path in found)


def test_pipes_and_sockets_are_left_out(source: Path) -> None:
    os.mkfifo(source / "pipe")
    assert "pipe" not in read_folder(source)


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: no such folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: a file, not a folder"):
        read_folder(tmp_path / "file")


def test_a_folder_that_is_much_too_large_is_bad_input(source: Path) -> None:
    with (source / "disk.img").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="holds more than 512 MiB"):
        read_folder(source)


# --- sent ----------------------------------------------------------------------------------------------------------


def test_the_first_time_all_is_sent_and_the_second_time_nothing(guest: Guest, source: Path, there: Path) -> None:
    assert send(guest, source) == (3, 0)
    assert names(there) == {b"Kbuild", b"a.c", b"sub", b"sub/b.c"}
    assert send(guest, source) == (0, 0)


def test_only_what_changed_is_sent_and_times_are_kept(guest: Guest, source: Path, there: Path) -> None:
    send(guest, source)
    os.utime(there / "sub" / "b.c", ns=(1, 1))
    (source / "a.c").write_text("int other;\n")
    os.utime(source / "a.c", ns=(0, 1_700_000_000_123_456_789))
    assert send(guest, source) == (1, 0)
    assert (there / "a.c").read_text() == "int other;\n"
    assert (there / "a.c").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert (there / "sub" / "b.c").stat().st_mtime_ns == 1


def test_a_file_that_was_only_touched_is_sent_again(guest: Guest, source: Path) -> None:
    send(guest, source)
    os.utime(source / "a.c")
    assert send(guest, source) == (1, 0)


def test_a_file_s_mode_is_kept(guest: Guest, source: Path, there: Path) -> None:
    (source / "check.sh").write_text("#!/bin/sh\n")
    (source / "check.sh").chmod(0o755)
    send(guest, source)
    assert (there / "check.sh").stat().st_mode & 0o777 == 0o755


def test_what_vanished_vanishes_and_what_make_left_stays(guest: Guest, source: Path, there: Path) -> None:
    send(guest, source)
    (there / "a.o").write_text("made")
    (source / "sub" / "b.c").unlink()
    (source / "sub").rmdir()
    assert send(guest, source) == (0, 2)
    assert names(there) == {b"Kbuild", b"a.c", b"a.o"}


def test_a_file_may_become_a_folder_and_back(guest: Guest, source: Path, there: Path) -> None:
    send(guest, source)
    (source / "a.c").unlink()
    (source / "a.c").mkdir()
    (source / "a.c" / "x").write_text("x")
    send(guest, source)
    assert (there / "a.c" / "x").read_text() == "x"
    (source / "a.c" / "x").unlink()
    (source / "a.c").rmdir()
    (source / "a.c").write_text("file")
    send(guest, source)
    assert (there / "a.c").read_text() == "file"


def test_links_stay_links(guest: Guest, source: Path, there: Path) -> None:
    (source / "link").symlink_to("sub/b.c")
    (source / "dangling").symlink_to("/nowhere/at all")
    send(guest, source)
    assert os.readlink(there / "link") == "sub/b.c"
    assert os.readlink(there / "dangling") == "/nowhere/at all"


def test_odd_names_survive_and_vanish_again(guest: Guest, source: Path, there: Path) -> None:
    for name in ODD:
        (source / os.fsdecode(os.fsencode(name))).write_text(repr(name))
    assert send(guest, source)[0] == 3 + len(ODD)
    assert names(there) >= {os.fsencode(name) for name in ODD}
    assert send(guest, source) == (0, 0)
    for name in ODD:
        (source / name).unlink()
    assert send(guest, source) == (0, len(ODD))
    assert names(there) == {b"Kbuild", b"a.c", b"sub", b"sub/b.c"}


def test_nothing_is_written_outside_of_the_module_s_folder(
    guest: Guest, source: Path, there: Path, tmp_path: Path
) -> None:
    send(guest, source)
    # Something in the guest puts a link in the place of a folder; what comes next must not go through it.
    outside = tmp_path / "outside"
    outside.mkdir()
    (there / "sub" / "b.c").unlink()
    (there / "sub").rmdir()
    (there / "sub").symlink_to(outside)
    (source / "sub" / "b.c").write_text("int changed;\n")
    send(guest, source)
    assert list(outside.iterdir()) == []
    assert (there / "sub" / "b.c").read_text() == "int changed;\n"


def test_a_guest_that_was_never_sent_anything_gets_all(guest: Guest, source: Path, there: Path) -> None:
    send(guest, source)
    paths.remove_tree(there)
    paths.remove_tree(guest.files.synced)
    assert send(guest, source) == (3, 0)
    assert (there / "a.c").exists()


def test_a_record_that_was_cut_short_only_costs_time(guest: Guest, source: Path, there: Path) -> None:
    send(guest, source)
    (record,) = guest.files.synced.glob("*.json")
    record.write_bytes(record.read_bytes()[:-5])
    assert send(guest, source) == (3, 0)


def test_a_guest_that_is_full_is_an_error_of_the_lab(guest: Guest, source: Path, there: Path) -> None:
    there.parent.mkdir()
    there.write_text("in the way")
    with pytest.raises(LabError, match=r"the guest could not remove old files: .*mkdir"):
        send(guest, source)
    assert not guest.files.synced.exists()


def test_a_file_that_vanishes_while_it_is_read_is_not_sent(source: Path) -> None:
    wanted = read_folder(source)
    (source / "a.c").unlink()
    archive, gone = source_folder._archive(source, wanted, ["a.c", "sub/b.c"])
    assert gone == ["a.c"]
    with tarfile.open(fileobj=io.BytesIO(archive)) as sent:
        assert sent.getnames() == ["sub", "sub/b.c"]


@pytest.mark.parametrize("target", ["/proc/kmsg", "/proc/version", "/sys/kernel/uevent_seqnum"])
def test_a_makefile_that_is_a_file_of_the_kernel_is_bad_input_at_once(source: Path, target: str) -> None:
    (source / "Makefile").unlink(missing_ok=True)
    (source / "Makefile").symlink_to(target)
    with pytest.raises(ConfigError, match=r"Makefile: is no regular file of a disk"):
        check_folder(source)


def test_an_archive_holds_the_folders_of_what_is_in_it(source: Path) -> None:
    wanted = read_folder(source)
    with tarfile.open(fileobj=io.BytesIO(source_folder._archive(source, wanted, ["sub/b.c"])[0])) as archive:
        assert archive.getnames() == ["sub", "sub/b.c"]
        assert archive.getmember("sub/b.c").pax_headers["mtime"] == (
            f"{wanted['sub/b.c'].mtime_ns // 10**9}.{wanted['sub/b.c'].mtime_ns % 10**9:09d}"
        )


def test_a_guest_that_goes_away_is_said_to_be_gone(source: Path, guest: Guest) -> None:
    with World(FakeModule(name="mod")) as world:
        xml = f"<domain><devices><serial><log file='{source}/console'/></serial></devices></domain>"
        machine = Machine(xml, source.parent / "v")
        machine.end()
        gone = Guest(guest.files, guest.record, FakeShell(world, machine))
        with pytest.raises(GuestUnreachable, match="the guest went away"):
            send(gone, source)
