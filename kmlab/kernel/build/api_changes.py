"""Find the change of the kernel's interface that is behind a build error; `apihistory` has the table."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from kmlab.kernel.build.api_history import CHANGES, ApiChange


class Cause(NamedTuple):
    """A change that is behind an error, and on which side of it the kernel is."""

    change: ApiChange
    kernel_has_it: bool
    """Whether old code met a kernel with the change, and not new code one without."""
    early: bool = False
    """The kernel is older than the change, which its stable release has taken over."""

    @property
    def version(self) -> str:
        return f"{self.change.since[0]}.{self.change.since[1]}"


def find_cause(message: str, release: str, tested: Collection[tuple[int, int]] = ()) -> Cause | None:
    """Find the change behind an error on the kernel `release`; None if none is known.

    `message` is what the compiler or modpost said, its notes in further lines. `tested` are the versions that the
    module's sources compare the kernel's with: what is gone before the version with which it should go was taken over
    by a stable release.
    """
    version = parse_release(release)
    if version is None:
        return None
    # gcc quotes with typographic marks in a UTF-8 locale, with plain ones elsewhere.
    plain = re.sub(r" {2,}", " ", re.sub(r"[\u2018\u2019`]", "'", message[:_LONGEST]))
    # Of several changes the last is the one that the kernel's own words are about.
    for change in reversed(CHANGES):
        early = version < change.since and (version in change.stable or change.since in tested)
        if (version >= change.since or early) and change.on_newer and re.search(change.on_newer, plain, re.DOTALL):
            return Cause(change, True, early)
    for change in CHANGES:
        taken = version >= change.since or version in change.stable
        if not taken and change.on_older and re.search(change.on_older, plain, re.DOTALL):
            return Cause(change, False)
    return None


def find_api_change(message: str, release: str, tested: Collection[tuple[int, int]] = ()) -> str | None:
    """Write a sentence about the change behind an error on the kernel `release`; None if none is known."""
    cause = find_cause(message, release, tested)
    if cause is None:
        return None
    if cause.early:
        return f"since Linux {cause.version} {cause.change.text}, and this {release} has taken that over"
    if cause.kernel_has_it:
        return f"since Linux {cause.version} {cause.change.text}; this kernel is {release}"
    return f"only since Linux {cause.version} {cause.change.text}; this kernel is {release}, so it needs the older form"


def find_version_tests(text: str) -> set[tuple[int, int]]:
    """Find the versions that a source compares the kernel's with."""
    return {(int(major), int(minor)) for major, minor in _KERNEL_VERSION.findall(text)}


def find_missing_include(message: str) -> str | None:
    """Return the header that declares a function that the compiler does not know, if it is often forgotten."""
    found = re.search(r"implicit declaration of function [\u2018'`](\w+)[\u2019']", message) or re.search(
        r"undeclared function '(\w+)'", message
    )
    return next((header for header, names in _HEADERS.items() if found and found[1] in names.split()), None)


def parse_release(release: str) -> tuple[int, int] | None:
    """Version and patch level of a kernel's release: (6, 1) for 6.1.0-56-cloud-amd64."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


_LONGEST = 8000
"""Characters of an error and its notes that are looked at."""
_KERNEL_VERSION = re.compile(r"KERNEL_VERSION\(\s{0,4}(\d{1,3})\s{0,4},\s{0,4}(\d{1,3})\s{0,4},")
_HEADERS = {
    "linux/slab.h": "kmalloc kzalloc kcalloc kfree krealloc kmem_cache_create kmem_cache_alloc",
    "linux/vmalloc.h": "vmalloc vzalloc vfree",
    "linux/uaccess.h": "copy_to_user copy_from_user put_user get_user access_ok",
    "linux/device.h": "class_create class_destroy device_create device_destroy class_register",
    "linux/cdev.h": "cdev_init cdev_add cdev_del cdev_alloc",
    "linux/fs.h": "register_chrdev unregister_chrdev alloc_chrdev_region register_chrdev_region filp_open",
    "linux/delay.h": "msleep mdelay udelay ndelay usleep_range ssleep",
    "linux/kthread.h": "kthread_run kthread_create kthread_stop kthread_should_stop",
    "linux/proc_fs.h": "proc_create proc_remove remove_proc_entry proc_mkdir pde_data",
    "linux/seq_file.h": "seq_printf seq_puts single_open seq_open seq_read",
    "linux/io.h": "ioremap iounmap readl writel readb writeb",
    "linux/interrupt.h": "request_irq free_irq tasklet_schedule tasklet_setup request_threaded_irq",
    "linux/sched/signal.h": "signal_pending send_sig allow_signal for_each_process",
    "linux/kallsyms.h": "kallsyms_lookup_name sprint_symbol",
    "linux/kprobes.h": "register_kprobe unregister_kprobe register_kretprobe",
    "linux/debugfs.h": "debugfs_create_dir debugfs_create_file debugfs_remove",
    "linux/timer.h": "timer_setup mod_timer add_timer del_timer timer_delete",
    "linux/workqueue.h": "schedule_work cancel_work_sync alloc_workqueue schedule_delayed_work",
    "linux/miscdevice.h": "misc_register misc_deregister",
    "linux/of.h": "of_property_read_u32 of_match_node of_find_node_by_name",
    "linux/dma-mapping.h": "dma_alloc_coherent dma_free_coherent dma_map_single dma_set_mask",
}
