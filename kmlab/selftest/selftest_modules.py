"""Define the lab that a self-test runs: one module that passes, one that crashes, one that panics."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MAKEFILE = "obj-m := {name}.o\n"
_HELLO = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init selftest_init(void)
{
	pr_info("selftest: hello\\n");
	return 0;
}

static void __exit selftest_exit(void)
{
	pr_info("selftest: goodbye\\n");
}

module_init(selftest_init);
module_exit(selftest_exit);
MODULE_DESCRIPTION("A module that works");
MODULE_LICENSE("GPL");
"""
_OOPS = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/workqueue.h>

static int *nowhere;

static void selftest_write(struct work_struct *work)
{
	WRITE_ONCE(*READ_ONCE(nowhere), 1); /* the bug */
}

static DECLARE_WORK(selftest_work, selftest_write);

static int __init selftest_init(void)
{
	schedule_work(&selftest_work);
	return 0;
}

static void __exit selftest_exit(void)
{
}

module_init(selftest_init);
module_exit(selftest_exit);
MODULE_DESCRIPTION("A module that writes to a NULL pointer");
MODULE_LICENSE("GPL");
"""
_PANIC = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
#include <linux/panic.h>
#endif

static int __init selftest_give_up(void)
{
	panic("selftest: on purpose");
	return 0;
}

module_init(selftest_give_up);
MODULE_DESCRIPTION("A module that stops the kernel");
MODULE_LICENSE("GPL");
"""
_LAB = """\
name: selftest
guests:
{guests}
modules:
  selftest_hello: {{source: selftest_hello, expect: {{log: ["selftest: hello", "selftest: goodbye"]}}}}
  selftest_oops:
    source: selftest_oops
    exercise: sleep 1
    expect: {{outcome: oops, function: selftest_write}}
  selftest_panic: {{source: selftest_panic, expect: {{outcome: panic, function: selftest_give_up}}}}
vmcore: never
accel: {accel}
"""
HELLO, OOPS, PANIC, SECURE = "selftest_hello", "selftest_oops", "selftest_panic", "secure"
OOPS_LINE = _OOPS[: _OOPS.index("/* the bug */")].count("\n") + 1


def guest_name(image: str) -> str:
    return re.sub("[^a-z0-9]+", "-", image)


def lab_files(images: Sequence[str], accel: str) -> dict[str, str]:
    """Return the files of the lab: a guest for each image, and one with Secure Boot of the first image."""
    guests = [f"  {guest_name(image)}: {{image: {image}, cpus: 2, memory: 1G}}" for image in images]
    guests.append(f"  {SECURE}: {{image: {images[0]}, cpus: 2, memory: 1G, secure_boot: true}}")
    files = {"lab.yaml": _LAB.format(guests="\n".join(guests), accel=accel)}
    for name, text in ((HELLO, _HELLO), (OOPS, _OOPS), (PANIC, _PANIC)):
        files |= {f"{name}/{name}.c": text, f"{name}/Makefile": _MAKEFILE.format(name=name)}
    return files
