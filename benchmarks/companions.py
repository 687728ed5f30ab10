"""Run the tools that kmlab is compared with; the benchmark installs them below .kmlab/bench and nowhere else.

virtme-ng (https://github.com/arighi/virtme-ng) from PyPI boots the distribution's own kernel on the host's root. Its
kernel, that kernel's headers, kmod and busybox are the distribution's packages, unpacked and not installed.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.world import SCRATCH, World

_TOOLS = ("depmod", "modprobe", "insmod", "rmmod", "modinfo", "lsmod")
_OTHERS = ("kmod", "libkmod2", "busybox-static")


class Virtme:
    """virtme-ng on the distribution's kernel of the guests' version, in the flavour that has 9p."""

    def __init__(self, folder: Path, release: str) -> None:
        self.root = folder / "root"
        self.venv = folder / "venv"
        self.tools = folder / "tools"
        self.home = folder / "home"
        self.release = release
        self.kernel = self.root / "boot" / f"vmlinuz-{release}"
        self.headers = self.root / "usr/src" / f"linux-headers-{release}"

    @property
    def version(self) -> str:
        """The version of the installed virtme-ng."""
        (about,) = self.venv.glob("lib/python*/site-packages/virtme_ng-*.dist-info")
        return about.name.removeprefix("virtme_ng-").removesuffix(".dist-info")

    def boot(self, world: World, script: str) -> float:
        """Measure the time from the start to the end of one command in a guest, in seconds."""
        # What vng prints of the command's code differs between its versions, and without udev its own exit code is not
        # the command's. So the command prints a mark: a product, because vng prints the command as well; and it does so
        # on the kernel's console too, because without udev vng loses what a command prints.
        factor = secrets.randbelow(9000) + 1000
        marked = f"{{ {script}; }} && mark=kmlab-$(({factor} * {factor}))-ended && echo $mark && echo $mark > /dev/kmsg"
        argv: list[str | Path] = [self.venv / "bin/vng", "--verbose", "--run", self.kernel]
        argv += ["--disable-kvm", "--force-9p", "--disable-microvm", "--cpus", "2", "--memory", "1G"]
        argv += ["--busybox", self.root / "bin/busybox", "--exec", marked]
        took, out = world.run(argv, accept=range(256), env=self._environment(), both=True)
        if f"kmlab-{factor**2}-ended" not in out:
            raise RuntimeError(f"the command in the guest of virtme-ng {self.version} did not end well:\n{out[-2000:]}")
        return took

    def make(self, world: World, module: Path) -> float:
        """Measure plain kbuild on the host with this kernel's headers, in seconds."""
        took, _ = world.run(["make", "-C", self.headers, f"M={module}", "modules"])
        return took

    def _environment(self) -> dict[str, str]:
        self.home.mkdir(exist_ok=True)
        path = f"{self.tools}:{self.venv / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home)}


@functools.cache
def virtme() -> Virtme:
    """Return virtme-ng; install it if necessary."""
    folder = SCRATCH / "virtme"
    ready = folder / "release"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _install(Virtme(folder, _release()))
        ready.write_text(_release())
    return Virtme(folder, ready.read_text())


def versions() -> dict[str, str]:
    """Return the versions of the measured companions, by their names."""
    return {"virtme-ng": virtme().version} if virtme.cache_info().currsize else {}


@functools.cache
def _release() -> str:
    """Return the distribution's newest generic kernel that apt knows here."""
    about = _said(["apt-cache", "depends", f"linux-image-{_arch()}"])
    dependency = re.search(r"Depends: linux-image-(\S+)", about)
    if not dependency:
        raise RuntimeError("apt knows no kernel here: sudo apt-get update")
    return dependency[1]


def _install(companion: Virtme) -> None:
    release = companion.release
    common = release.removesuffix(f"-{_arch()}")
    kbuild = f"linux-kbuild-{'.'.join(release.split('.')[:2])}"
    packages = [f"linux-image-{release}", f"linux-headers-{release}", f"linux-headers-{common}-common", kbuild]
    archives = companion.root.parent / "archives"
    archives.mkdir()
    subprocess.run(["apt-get", "download", *packages, *_OTHERS], cwd=archives, check=True, capture_output=True)
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, companion.root], check=True)
    shutil.rmtree(archives)
    # The package's Makefile names the other half of the headers by its installed path.
    makefile = companion.headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src", str(companion.root / "usr/src")))
    companion.tools.mkdir()
    libraries = next(companion.root.rglob("libkmod.so.2")).parent
    for name in _TOOLS:
        tool = companion.tools / name
        program = f'exec -a {name} "{companion.root}/bin/kmod" "$@"'
        tool.write_text(f'#!/bin/bash\nexport LD_LIBRARY_PATH="{libraries}"\n{program}\n')
        tool.chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", companion.venv], check=True)
    pip: list[str | Path] = [companion.venv / "bin/python", "-m", "pip", "install", "--quiet", "virtme-ng"]
    subprocess.run(pip, check=True, capture_output=True)


def _arch() -> str:
    return _said(["dpkg", "--print-architecture"]).strip()


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
