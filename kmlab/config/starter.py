"""Define the files that `kmlab init` writes: a lab.yaml with comments, and a first module."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.config.catalog import Image
from kmlab.config.lab import LAB_FILE


def starter_files(name: str, image: Image | None = None) -> dict[str, str]:
    """Return the files of a new lab: each path in the lab's folder with its text. `name` may be any folder's name.

    `image` is that of the default guest; without one, it is debian-12. Another guest shows a second distribution.
    """
    first = _guest(image.name, image.family, is_built(image)) if image else _DEBIAN
    second = _DEBIAN if image and image.family == "ubuntu" else _UBUNTU
    lab = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:31].rstrip("-") or "lab"
    return {
        LAB_FILE: _lab_yaml(lab, first, second),
        "hello/hello.c": _HELLO_C,
        "hello/Makefile": _MAKEFILE,
    }


def is_built(image: Image) -> bool:
    """Return whether the image is built on the host from packages, and not downloaded."""
    return any(entry.packages is not None for entry in image.architectures.values())


class _Guest(NamedTuple):
    name: str
    image: str
    first_use: str
    """What happens when it is first used, as two lines of comment."""


_BUILT = (
    "at first use: builds the image from the distribution's signed packages, and boots it once",
    "(2 to 5 minutes)",
)
_DOWNLOADED = (
    "at first use: downloads the publisher's image (about 600 MB), checks its signature or digest,",
    "and boots it twice to install a compiler and headers (5 to 15 minutes)",
)


def _guest(image: str, family: str, built: bool) -> _Guest:
    name = {"debian-12": "debian", "ubuntu-24.04": "noble"}.get(image) or re.sub("[^a-z0-9]+", "-", image)
    return _Guest(name, image, "\n    # ".join(_BUILT if built else _DOWNLOADED))


def _lab_yaml(lab: str, first: _Guest, second: _Guest) -> str:
    words = {"NAME": lab, "SCHEMA": SCHEMA_FILE}
    for place, guest in (("FIRST", first), ("SECOND", second)):
        words |= {f"{place}_GUEST": guest.name, f"{place}_IMAGE": guest.image, f"{place}_USE": guest.first_use}

    def fill(line: str) -> str:
        """Fill in the words of a line, and keep the column of its comment."""
        filled = re.sub("@([A-Z_]+)@", lambda found: words[found[1]], line)
        text, mark, comment = filled.partition("  # ")
        return f"{text.rstrip():<30}{mark}{comment}" if mark and text.strip() else filled

    return "\n".join(map(fill, _LAB_YAML.split("\n")))


SCHEMA_FILE = ".lab.schema.json"
"""Next to lab.yaml, so that editors find it on every machine."""

_LAB_YAML = """\
# yaml-language-server: $schema=@SCHEMA@
# A kmlab lab. `kmlab run hello` builds, loads and unloads the module in hello/ in the default guest.
name: @NAME@
default: @FIRST_GUEST@  # the guest, or a list of them, that commands mean when they name none

guests:
  @FIRST_GUEST@:
    image: @FIRST_IMAGE@  # one of `kmlab image list`
    # @FIRST_USE@
    cpus: 2
    memory: 1G
    # cmdline: slub_debug=FZPU  # added to the kernel's command line
    # packages: [kexec-tools]   # installed besides those that builds need
  # A second guest. It starts only when a command names it: kmlab run hello -g @SECOND_GUEST@
  @SECOND_GUEST@:
    image: @SECOND_IMAGE@
    # @SECOND_USE@

# A folder with a Makefile or a Kbuild file runs without an entry. An entry adds parameters and expectations.
modules:
  hello:
    source: hello
    params: {whom: world}       # as `insmod hello.ko whom=world`; a list is an array parameter
    # exercise: ./check.sh      # runs as root in the guest, between load and unload
    # timeout: 2m
    expect:
      outcome: pass             # or warning, oops, panic, load-failed …: what this module is meant to do
      log: ["Hello, world"]     # each must be in the kernel's log; /…/ is a regular expression

libvirt: embedded               # or a libvirt URI, such as qemu:///session
accel: auto                     # or kvm, tcg
"""

_HELLO_C = """\
// SPDX-License-Identifier: GPL-2.0
/* Says hello when it is loaded and goodbye when it is unloaded. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static char *whom = "nobody";
module_param(whom, charp, 0444);
MODULE_PARM_DESC(whom, "Who is greeted");

static int __init hello_init(void)
{
	pr_info("Hello, %s\\n", whom);
	return 0;
}

static void __exit hello_exit(void)
{
	pr_info("Goodbye, %s\\n", whom);
}

module_init(hello_init);
module_exit(hello_exit);

MODULE_DESCRIPTION("A first module");
MODULE_LICENSE("GPL");
"""

_MAKEFILE = """\
# Kbuild reads the first line. The rest builds for the kernel that runs here: `make`, `make clean`.
obj-m := hello.o

KDIR ?= /lib/modules/$(shell uname -r)/build

all clean:
	$(MAKE) -C $(KDIR) M=$(CURDIR) $(if $(filter clean,$@),clean,modules)

.PHONY: all clean
"""

_DEBIAN, _UBUNTU = _guest("debian-12", "debian", True), _guest("ubuntu-24.04", "ubuntu", False)
