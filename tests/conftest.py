"""What all tests stand on: folders of their own for state and cache, so that no test sees a person's lab."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common.events import Event
from kmlab.config.lab import Lab, load_lab
from kmlab.run import run
from kmlab.run.result import RunResult
from kmlab.testing import FakeModule, World
from tests.publisher import Authority, Publisher, Server, Signer, disk_image
from tests.story import LAB, Go
from tests.watched import Site


def pytest_configure() -> None:
    """^C is among what is tested; a shell lets what it starts in the background ignore it (POSIX, 2.11)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def options_of_no_other_test() -> Iterator[None]:
    """Forget --json and the like after a test that calls the program in this process."""
    yield
    if options := sys.modules.get("kmlab.cli.options.shared_options"):
        options.set_global_options(json=False, debug=False)
        options.cli_state.build_host = None


@pytest.fixture
def xdg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder with state/ and cache/, its path short: libvirt puts sockets beneath it."""
    folder = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the certificate of the suite's servers."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def signer() -> Iterator[Signer]:
    """A publisher's key."""
    made = Signer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def stranger() -> Iterator[Signer]:
    """Somebody else's key, under the publisher's name."""
    made = Signer()
    yield made
    made.close()


@pytest.fixture
def server(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An HTTPS server that this process trusts, and no proxy in between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "KMLAB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    made = Server(authority.context())
    yield made
    made.close()


@pytest.fixture
def publisher(server: Server, signer: Signer) -> Publisher:
    """A publisher without a release."""
    return Publisher(server, signer)


@pytest.fixture
def site(xdg: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The tools of QEMU note that they were called, by a shell script before them in PATH."""
    shims = xdg / "bin"
    shims.mkdir()
    for tool in ("qemu-img", "qemu-system-x86_64", "qemu-system-aarch64", "qemu-nbd", "qemu-io"):
        (shims / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {xdg}/calls\nPATH=${{PATH#*:}} exec {tool} "$@"\n')
        (shims / tool).chmod(0o755)
    made = Site(xdg, publisher, xdg / "calls")
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    return made


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An old and a new disk."""
    folder = tmp_path_factory.mktemp("disks")
    return disk_image(folder, "8M"), disk_image(folder, "16M")


@pytest.fixture
def lab(xdg: Path) -> Lab:
    """A lab with the folders of two modules, hello and params."""
    for name in ("hello", "params"):
        folder = xdg / "lab" / name
        folder.mkdir(parents=True)
        (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
        (folder / f"{name}.c").write_text("/* nothing */\n")
    (xdg / "lab" / "lab.yaml").write_text(LAB)
    return load_lab(xdg / "lab" / "lab.yaml")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def go(lab: Lab, world: World, events: list[Event]) -> Go:
    """Run a module that behaves in this way; the rest are the run's options."""

    def story(
        name: str = "hello", *, guest: str = "debian", options: object = None, lab: Lab = lab, **acts: object
    ) -> RunResult:
        world.modules[name] = FakeModule(name=name, **acts)  # type: ignore[arg-type]
        wanted = lab.module_for(lab.folder / name)
        chosen = options if isinstance(options, run.Options) else run.Options()
        return run.run(world.host, lab, lab.guest(guest), wanted, chosen, events.append)

    return story
