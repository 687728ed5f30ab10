"""The README's commands on new machines with Debian 13 and sid, and users to whom something is missing.

`make test-hosts` runs these tests. They need root, the network, and half an hour for each machine. They print how many
seconds each step took.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.hosts import fresh_host
from tests.hosts.fresh_host import USER, FreshHost, Said

pytestmark = pytest.mark.hosts
DEMO = "make demo"


@pytest.fixture(scope="module", params=["trixie", "sid"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshHost]:
    assert os.geteuid() == 0, "make test-hosts needs root"
    # A short path in which every user may look up names: QEMU's sockets lie in it.
    folder = tmp_path_factory.mktemp("hosts")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    yield fresh_host.make(request.param, folder)


def report(what: str, said: Said) -> None:
    print(f"\n{what}: {said.seconds:.0f} s")


def last_lines(said: Said) -> str:
    return "\n".join(said.output.splitlines()[-15:])


def test_the_first_command_works_for_an_ordinary_user(host: FreshHost) -> None:
    """With umask 077, German, and a path with a space and an umlaut."""
    said = host.run(f"umask 077; {DEMO}", LC_ALL="de_DE.UTF-8")
    report("make demo, ordinary user", said)
    assert said.code == 0, last_lines(said)
    assert re.search(r"^PASS  hello on debian", said.output, re.MULTILINE), last_lines(said)
    again = host.run(".venv/bin/kmlab run examples/oops --exercise 'cat /proc/oops'")
    report("a crash", again)
    assert again.code == 0 and "null_read at oops.c:27" in again.output, last_lines(again)
    assert host.run(".venv/bin/kmlab destroy").code == 0


def test_the_first_command_works_for_root(host: FreshHost) -> None:
    said = host.run(f"rm -rf .venv; {DEMO}", user="root")
    report("make demo, root", said)
    assert said.code == 0, last_lines(said)
    assert re.search(r"^PASS  hello on debian", said.output, re.MULTILINE), last_lines(said)
    assert host.run(".venv/bin/kmlab destroy; chown -R anna: .", user="root").code == 0


def doctor(host: FreshHost, what: str, locale: str = "C.UTF-8") -> str:
    """The line of doctor about one thing."""
    said = host.run(".venv/bin/kmlab doctor", LC_ALL=locale)
    assert "Traceback" not in said.output, last_lines(said)
    (line,) = re.findall(rf"^\w+ +{re.escape(what)} .*(?:\n +mend:.*)?", said.output, re.MULTILINE)
    return str(line)


def test_a_user_without_a_range_of_ids_is_told_the_command(host: FreshHost) -> None:
    ranges = host.root / "etc/subuid"
    kept = ranges.read_text()
    ranges.write_text("")
    try:
        line = doctor(host, "user namespaces")
        assert line.startswith("broken") and "mend: sudo usermod --add-subuids 100000-165535" in line
        built = host.run(".venv/bin/kmlab image build debian-13")
        assert built.code == 3 and "usermod --add-subuids" in built.output, last_lines(built)
    finally:
        ranges.write_text(kept)


def test_a_user_without_bubblewrap_is_told_its_package(host: FreshHost) -> None:
    program = host.root / "usr/bin/bwrap"
    program.rename(program.with_suffix(".away"))
    try:
        assert "apt-get install --yes --no-install-recommends bubblewrap" in doctor(host, "bwrap")
        assert doctor(host, "sandbox for builds").startswith("slow")
    finally:
        program.with_suffix(".away").rename(program)


def test_a_user_without_sudo_is_told_what_root_must_do(host: FreshHost) -> None:
    program = host.root / "usr/bin/sudo"
    ranges = host.root / "etc/subuid"
    kept = ranges.read_text()
    ranges.write_text("")
    program.rename(program.with_suffix(".away"))
    try:
        said = host.run("sh tools/setup.sh --run-only")
        assert said.code == 1
        assert "setup: there is no sudo: as root, run: usermod --add-subuids 100000-165535" in said.output
        assert USER in said.output.splitlines()[-1]
    finally:
        program.with_suffix(".away").rename(program)
        ranges.write_text(kept)


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.UTF-8"])
def test_the_locale_changes_nothing(host: FreshHost, locale: str) -> None:
    said = host.run(".venv/bin/kmlab status && .venv/bin/kmlab --help > /dev/null", LC_ALL=locale)
    assert said.code == 0 and "Traceback" not in said.output, last_lines(said)
    line = doctor(host, "libvirt's QEMU driver", locale)
    assert line.startswith("fine")
