"""Define the files that `kmlab init` writes: a lab.yaml with comments, and a first module."""

from __future__ import annotations

import re

from kmlab.config.lab import LAB_FILE


def starter_files(name: str) -> dict[str, str]:
    """Return the files of a new lab: each path in the lab's folder with its text. `name` may be any folder's name."""
    lab = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:31].rstrip("-") or "lab"
    return {
        LAB_FILE: _LAB_YAML.replace("@NAME@", lab).replace("@SCHEMA@", SCHEMA_FILE),
        "hello/hello.c": _HELLO_C,
        "hello/Makefile": _MAKEFILE,
    }


SCHEMA_FILE = ".lab.schema.json"
"""Next to lab.yaml, so that editors find it on every machine."""

_LAB_YAML = """\
# yaml-language-server: $schema=@SCHEMA@
# A kmlab lab. `kmlab run hello` builds, loads and unloads the module in hello/ in the default guest.
name: @NAME@
default: debian                 # the guest, or a list of them, that commands mean when they name none

guests:
  debian:
    image: debian-12            # one of `kmlab image list`
    cpus: 2
    memory: 1G
    # cmdline: slub_debug=FZPU  # added to the kernel's command line
    # packages: [kexec-tools]   # installed besides those that builds need

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
