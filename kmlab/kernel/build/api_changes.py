"""The changes of the kernel's interface that break modules most, so that a build error can name its cause.

Each row is from the kernel's own history; the version is the first release that has the change.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class ApiChange(NamedTuple):
    """One change: what the compiler says of code in the old form on a new kernel, and the other way round."""

    since: tuple[int, int]
    text: str
    """What is so since then, as the end of a sentence that begins with `since Linux X.Y`."""
    on_newer: str
    """Matches the error that old code gives from that release on; empty for none."""
    on_older: str = ""
    """Matches the error that new code gives before that release; empty for none."""


class Cause(NamedTuple):
    """A change that is behind an error, and on which side of it the kernel is."""

    change: ApiChange
    kernel_has_it: bool
    """Whether old code met a kernel with the change, and not new code one without."""

    @property
    def version(self) -> str:
        return f"{self.change.since[0]}.{self.change.since[1]}"


def find_cause(message: str, release: str) -> Cause | None:
    """The change behind an error on the kernel `release`; None if none is known.

    `message` is what the compiler or modpost said, its notes in further lines.
    """
    version = parse_release(release)
    if version is None:
        return None
    # gcc quotes with typographic marks in a UTF-8 locale, with plain ones elsewhere.
    plain = re.sub(r"[\u2018\u2019`]", "'", message)
    for change in _CHANGES:
        has_it = version >= change.since
        expression = change.on_newer if has_it else change.on_older
        if expression and re.search(expression, plain, re.DOTALL):
            return Cause(change, has_it)
    return None


def find_api_change(message: str, release: str) -> str | None:
    """A sentence about the change behind an error on the kernel `release`; None if none is known."""
    cause = find_cause(message, release)
    if cause is None:
        return None
    if cause.kernel_has_it:
        return f"since Linux {cause.version} {cause.change.text}; this kernel is {release}"
    return f"only since Linux {cause.version} {cause.change.text}; this kernel is {release}, so it needs the older form"


def find_missing_include(message: str) -> str | None:
    """The header that declares a function which the compiler does not know, for those that are forgotten
    most.
    """
    found = re.search(r"implicit declaration of function [\u2018'`](\w+)[\u2019']", message) or re.search(
        r"undeclared function '(\w+)'", message
    )
    return next((header for header, names in _HEADERS.items() if found and found[1] in names.split()), None)


def parse_release(release: str) -> tuple[int, int] | None:
    """Version and patch level of a kernel's release: (6, 1) for 6.1.0-56-cloud-amd64."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


def _unknown(*names: str) -> str:
    """Matches all the ways of saying that something of one of these names is not there."""
    either = "|".join(names)
    return (
        rf"(?:implicit declaration of function|undeclared function) '(?:{either})'|'(?:{either})' undeclared"
        rf"|undeclared identifier '(?:{either})'|unknown type name '(?:{either})'|\"(?:{either})\" "
        ".*undefined!"
    )


def _arguments(*names: str) -> str:
    """Matches complaints about how many arguments a function or macro is given."""
    either = "|".join(names)
    return (
        rf"too (?:many|few) arguments to function '(?:{either})'"
        rf"|too (?:many|few) arguments to function call.*'(?:{either})' declared here"
        rf"|macro [\"'](?:{either})[\"'] (?:passed|requires) \d+ arguments"
    )


def _member(owner: str, *names: str) -> str:
    """Matches complaints that a structure has no member of that name; gcc's wording and clang's."""
    either = "|".join(names)
    return (
        rf"'(?:const )?struct {owner}' has no member named '(?:{either})'|no member named '(?:{either})' in "
        rf"'struct {owner}'"
    )


_CHANGES = (
    ApiChange(
        (4, 15),
        "timers are set up with timer_setup(), and the callback takes the struct timer_list",
        _unknown("setup_timer", "init_timer") + "|" + _member("timer_list", "data"),
        _unknown("timer_setup"),
    ),
    ApiChange(
        (5, 0),
        "access_ok() takes the address and the size only, without VERIFY_READ or VERIFY_WRITE",
        _arguments("access_ok") + "|" + _unknown("VERIFY_READ", "VERIFY_WRITE"),
        _arguments("access_ok"),
    ),
    ApiChange((5, 0), "do_gettimeofday() is gone: use ktime_get_real_ts64()", _unknown("do_gettimeofday")),
    ApiChange((5, 0), "dma_zalloc_coherent() is gone: dma_alloc_coherent() zeroes", _unknown("dma_zalloc_coherent")),
    ApiChange(
        (5, 6),
        "proc_create() takes a struct proc_ops (proc_open, proc_read …) in place of file_operations",
        r"argument \d of 'proc_create(?:_data)?' from incompatible pointer|parameter of type 'const struct "
        r"proc_ops \*'",
        _member("proc_ops", r"proc_\w+") + r"|incomplete type '(?:const )?struct proc_ops'",
    ),
    ApiChange((5, 6), "ioremap_nocache() is gone: use ioremap()", _unknown("ioremap_nocache")),
    ApiChange(
        (5, 7),
        "kallsyms_lookup_name() is not exported to modules: find the address with a kprobe, or use what is exported",
        _unknown("kallsyms_lookup_name", "kallsyms_on_each_symbol"),
    ),
    ApiChange(
        (5, 8),
        "mmap_sem is called mmap_lock: use mmap_read_lock() and mmap_read_unlock()",
        _member("mm_struct", "mmap_sem"),
        _unknown("mmap_read_lock", "mmap_write_lock"),
    ),
    ApiChange(
        (5, 10),
        "set_fs() is gone: use kernel_read(), kernel_write() and the like",
        _unknown("set_fs", "get_fs", "KERNEL_DS", "mm_segment_t"),
    ),
    ApiChange(
        (5, 16),
        "stdarg.h is not on the path: include <linux/stdarg.h>",
        r"^stdarg\.h: No such file|'stdarg.h' file not",
    ),
    ApiChange((5, 17), "PDE_DATA() is called pde_data()", _unknown("PDE_DATA"), _unknown("pde_data")),
    ApiChange(
        (5, 17),
        "complete_and_exit() is called kthread_complete_and_exit()",
        _unknown("complete_and_exit"),
        _unknown("kthread_complete_and_exit"),
    ),
    ApiChange(
        (5, 18),
        "the pci_ functions for DMA are gone: use dma_alloc_coherent(), dma_map_single(), dma_set_mask()",
        _unknown("pci_alloc_consistent", "pci_free_consistent", "pci_map_single", "pci_set_dma_mask"),
    ),
    ApiChange(
        (5, 18),
        "struct kobj_type has default_groups in place of default_attrs",
        _member("kobj_type", "default_attrs"),
    ),
    ApiChange(
        (6, 1),
        "netif_napi_add() has no weight argument",
        _arguments("netif_napi_add"),
        _arguments("netif_napi_add"),
    ),
    ApiChange(
        (6, 1),
        "an i2c driver's remove() returns void",
        r"'void \(\*\)\(struct i2c_client \*\)' from incompatible pointer type 'int \(\*\)\(struct "
        r"i2c_client \*\)'",
    ),
    ApiChange(
        (6, 2),
        "a class's devnode() takes a const struct device *",
        r"'char \* ?\(\*\)\(const struct device \*, *umode_t \*\)'.*from incompatible pointer",
        r"from incompatible pointer type 'char \* ?\(\*\)\(const struct device \*, *umode_t \*\)'",
    ),
    ApiChange(
        (6, 3),
        "vm_flags is read-only: use vm_flags_set() and vm_flags_clear()",
        r"assignment of read-only member 'vm_flags'|'vm_flags'.*const-qualified|const-qualified .*'vm_flags'",
        _unknown("vm_flags_set", "vm_flags_clear", "vm_flags_mod"),
    ),
    ApiChange(
        (6, 3),
        "an i2c driver's probe() takes the client only",
        r"'int \(\*\)\(struct i2c_client \*\)' from incompatible pointer type 'int \(\*\)\(struct "
        r"i2c_client \*, ",
        r"'int \(\*\)\(struct i2c_client \*, .*' from incompatible pointer type 'int \(\*\)\(struct "
        r"i2c_client \*\)'",
    ),
    ApiChange(
        (6, 3),
        "inode operations take a struct mnt_idmap * in place of a struct user_namespace *",
        r"struct mnt_idmap \*.*from incompatible pointer",
        r"from incompatible pointer type '.*struct mnt_idmap \*|'struct mnt_idmap' declared inside",
    ),
    ApiChange(
        (6, 4),
        "class_create() takes the name only, without THIS_MODULE",
        _arguments("class_create"),
        _arguments("class_create"),
    ),
    ApiChange((6, 4), "struct class has no owner", _member("class", "owner")),
    ApiChange(
        (6, 5),
        "get_user_pages() has no vmas argument",
        _arguments("get_user_pages"),
        _arguments("get_user_pages"),
    ),
    ApiChange(
        (6, 5),
        "generic_file_splice_read() is gone: use filemap_splice_read()",
        _unknown("generic_file_splice_read"),
        _unknown("filemap_splice_read"),
    ),
    ApiChange(
        (6, 6),
        "an inode's i_ctime is set with inode_set_ctime_to_ts() and read with inode_get_ctime()",
        _member("inode", "i_ctime"),
        _unknown("inode_set_ctime_to_ts", "inode_set_ctime_current", "inode_get_ctime"),
    ),
    ApiChange((6, 6), "struct file_operations has iterate_shared only", _member("file_operations", "iterate")),
    ApiChange(
        (6, 7),
        "an inode's times are set with inode_set_atime_to_ts() and inode_set_mtime_to_ts()",
        _member("inode", "i_atime", "i_mtime"),
        _unknown("inode_set_atime_to_ts", "inode_set_mtime_to_ts", "simple_inode_init_ts"),
    ),
    ApiChange((6, 8), "strlcpy() is gone: use strscpy()", _unknown("strlcpy")),
    ApiChange(
        (6, 11),
        "a platform driver's remove() returns void",
        r"'void \(\*\)\(struct platform_device \*\)' from incompatible pointer type 'int \(\*\)\(struct "
        "platform_device",
        r"'int \(\*\)\(struct platform_device \*\)' from incompatible pointer type 'void \(\*\)\(struct "
        "platform_device",
    ),
    ApiChange(
        (6, 11),
        "a bus's match() takes a const struct device_driver *",
        r"'int \(\*\)\(struct device \*, *const struct device_driver \*\)' from incompatible pointer",
        r"from incompatible pointer type 'int \(\*\)\(struct device \*, *const struct device_driver \*\)'",
    ),
    ApiChange((6, 12), "no_llseek is gone: leave .llseek out", _unknown("no_llseek")),
    ApiChange(
        (6, 12),
        "asm/unaligned.h is linux/unaligned.h",
        r"^asm/unaligned\.h: No such file|'asm/unaligned\.h' file not",
        r"^linux/unaligned\.h: No such file|'linux/unaligned\.h' file not",
    ),
    ApiChange((6, 12), "the file of a struct fd is had with fd_file()", _member("fd", "file"), _unknown("fd_file")),
    ApiChange(
        (6, 13),
        "MODULE_IMPORT_NS() and EXPORT_SYMBOL_NS() take the namespace as a string, in double quotes",
        r"expected .* before '\w+'.*in expansion of macro '(?:MODULE_IMPORT_NS|EXPORT_SYMBOL_NS(?:_GPL)?)'",
    ),
    ApiChange(
        (6, 15),
        "del_timer() and del_timer_sync() are gone: use timer_delete() and timer_delete_sync()",
        _unknown("del_timer", "del_timer_sync"),
    ),
    ApiChange(
        (6, 2),
        "there is timer_delete() beside del_timer()",
        "",
        _unknown("timer_delete", "timer_delete_sync", "timer_shutdown", "timer_shutdown_sync"),
    ),
    ApiChange((6, 15), "hrtimer_init() is gone: use hrtimer_setup()", _unknown("hrtimer_init")),
    ApiChange((6, 13), "there is hrtimer_setup()", "", _unknown("hrtimer_setup")),
    ApiChange(
        (6, 16),
        "from_timer() is called timer_container_of()",
        _unknown("from_timer"),
        _unknown("timer_container_of"),
    ),
)

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
