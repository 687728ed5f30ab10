"""List the changes of the kernel's interface that out-of-tree modules meet most, from Linux 4.15 on, in their order.

A row is read by `apichanges`. Its source is the subject of the commit in the kernel's history; its version is the first
release that has the commit.
"""

from __future__ import annotations

from typing import NamedTuple


class ApiChange(NamedTuple):
    """One change: what the compiler says of code in the old form on a new kernel, and the other way round."""

    since: tuple[int, int]
    text: str
    """What is so since then, as the end of a sentence that begins with `since Linux X.Y`."""
    source: str
    """The subject of the commit."""
    on_newer: str
    """Matches the error that old code gives from that release on; empty for none."""
    on_older: str = ""
    """Matches the error that new code gives before that release; empty for none."""
    stable: tuple[tuple[int, int], ...] = ()
    """Older series whose stable releases have taken it over."""


def _unknown(*names: str) -> str:
    """Match all the ways of saying that something of one of these names is not there."""
    either = "|".join(names)
    return (
        rf"(?:implicit declaration of function|undeclared function) '(?:{either})'|'(?:{either})' undeclared"
        rf"|undeclared identifier '(?:{either})'|unknown type name '(?:{either})'|\"(?:{either})\" "
        ".*undefined!"
    )


def _arguments(*names: str) -> str:
    """Match complaints about how many arguments a function or macro is given."""
    either = "|".join(names)
    return (
        rf"too (?:many|few) arguments to function '(?:{either})'"
        rf"|too (?:many|few) arguments to function call.*'(?:{either})' declared here"
        rf"|macro [\"'](?:{either})[\"'] (?:passed|requires) \d+ arguments"
    )


def _member(owner: str, *names: str) -> str:
    """Match complaints that a structure has no member of that name; gcc's wording and clang's."""
    either = "|".join(names)
    return (
        rf"'(?:const )?struct {owner}' has no member named '(?:{either})'|no member named '(?:{either})' in "
        rf"'struct {owner}'|field designator '(?:{either})' does not refer to any field in type "
        rf"'(?:const )?struct {owner}'"
    )


def _header(*names: str) -> str:
    """Match complaints that a header is not there."""
    either = "|".join(names)
    return rf"^(?:{either}): No such file|'(?:{either})' file not found"


_AKA = r"(?: [{(]aka '[^']*'[})])?"


def _wants(part: str) -> str:
    """Match complaints about a function whose place wants a type with `part` in it, which its own has not."""
    return (
        rf"(?:initialization of|assignment to) '[^']*{part}[^']*'{_AKA} from incompatible pointer type (?!'[^']*{part})"
        rf"|incompatible function pointer types [a-z ]*'[^']*{part}[^']*'{_AKA} with an expression of type "
        rf"(?!'[^']*{part})"
    )


def _has(part: str) -> str:
    """Match complaints about a function whose own type has `part` in it, which its place does not want."""
    return (
        rf"(?:initialization of|assignment to) '(?![^']*{part})[^']*'{_AKA} from incompatible pointer type '[^']*{part}"
        rf"|incompatible function pointer types [a-z ]*'(?![^']*{part})[^']*'{_AKA} with an expression of type "
        rf"'[^']*{part}"
    )


def _changed(since: tuple[int, int], text: str, source: str, part: str, member: str = "") -> ApiChange:
    """Describe a callback whose type has had `part` in it since then.

    `member` is the callback's name, where others have such a type, too. gcc says it in a note.
    """
    only = rf"\A(?=.*near initialization for '[^']*\.{member}'|(?!.*near initialization)).*?" if member else ""
    return ApiChange(since, text, source, f"{only}(?:{_wants(part)})", f"{only}(?:{_has(part)})")


def _renamed(since: tuple[int, int], text: str, source: str, old: str, new: str) -> ApiChange:
    """Describe functions, or other names, that have new ones since then."""
    return ApiChange(since, text, source, _unknown(*old.split()), _unknown(*new.split()))


def _gone(since: tuple[int, int], text: str, source: str, names: str) -> ApiChange:
    """Describe names that are not there any more."""
    return ApiChange(since, text, source, _unknown(*names.split()))


def _new(since: tuple[int, int], text: str, source: str, names: str) -> ApiChange:
    """Describe names that were not there before, beside the old ones."""
    return ApiChange(since, text, source, "", _unknown(*names.split()))


def _counted(since: tuple[int, int], text: str, source: str, *names: str) -> ApiChange:
    """Describe functions or macros that take another number of arguments since then."""
    return ApiChange(since, text, source, _arguments(*names), _arguments(*names))


def _moved(since: tuple[int, int], text: str, source: str, old: str, new: str = "") -> ApiChange:
    """Describe a header that has another name since then."""
    return ApiChange(since, text, source, _header(*old.split()), _header(*new.split()) if new else "")


def _lacks(since: tuple[int, int], text: str, source: str, owner: str, names: str, new: str = "") -> ApiChange:
    """Describe a structure whose members are called otherwise, or are gone, since then."""
    return ApiChange(since, text, source, _member(owner, *names.split()), _member(owner, *new.split()) if new else "")


# fmt: off
CHANGES: tuple[ApiChange, ...] = (
    ApiChange((4, 15), "timers are set up with timer_setup(), and the callback takes the struct timer_list",
              "timer: Remove setup_*timer() interface",
              _unknown("setup_timer", "init_timer") + "|" + _member("timer_list", "data"), _unknown("timer_setup")),
    _moved((4, 20), "there is no linux/bootmem.h: include <linux/memblock.h>", "mm: remove include/linux/bootmem.h",
           "linux/bootmem.h"),
    ApiChange((5, 0), "access_ok() takes the address and the size only, without VERIFY_READ or VERIFY_WRITE",
              "Remove 'type' argument from access_ok() function",
              _arguments("access_ok") + "|" + _unknown("VERIFY_READ", "VERIFY_WRITE"), _arguments("access_ok")),
    _gone((5, 0), "do_gettimeofday() is gone: use ktime_get_real_ts64()", "timekeeping: remove obsolete time accessors",
          "do_gettimeofday getrawmonotonic get_monotonic_boottime"),
    _gone((5, 0), "dma_zalloc_coherent() is gone: dma_alloc_coherent() zeroes",
          "dma-mapping: remove dma_zalloc_coherent()", "dma_zalloc_coherent"),
    _lacks((5, 2), "struct shash_desc has no flags: leave them out", "crypto: shash - remove shash_desc::flags",
           "shash_desc", "flags"),
    _counted((5, 3), "force_sig() is for the task that runs and does not take another",
             "signal: Remove task parameter from force_sig", "force_sig"),
    _moved((5, 4), "there is no linux/pci-aspm.h: include <linux/pci.h>", "PCI: Move ASPM declarations to linux/pci.h",
           "linux/pci-aspm.h"),
    _gone((5, 5), "the blkcipher API is gone: use crypto_alloc_skcipher()",
          'crypto: skcipher - remove the "blkcipher" algorithm type', "crypto_alloc_blkcipher crypto_free_blkcipher"),
    _moved((5, 5), "there is no drm/drmP.h: include <drm/drm_drv.h>, <drm/drm_device.h> and what else is used",
           "drm: delete drmP.h + drm_os_linux.h", "drm/drmP.h"),
    ApiChange((5, 6), "proc_create() takes a struct proc_ops (proc_open, proc_read …) in place of file_operations",
              'proc: decouple proc from VFS with "struct proc_ops"',
              r"argument \d of 'proc_create(?:_data)?' from incompatible pointer|parameter of type 'const struct "
              r"proc_ops \*'", _member("proc_ops", r"proc_\w+") + r"|incomplete type '(?:const )?struct proc_ops'"),
    _gone((5, 6), "ioremap_nocache() is gone: use ioremap()", "remove ioremap_nocache and devm_ioremap_nocache",
          "ioremap_nocache devm_ioremap_nocache"),
    _gone((5, 6), "the ablkcipher API is gone: use crypto_alloc_skcipher()",
          'crypto: skcipher - remove the "ablkcipher" algorithm type',
          "crypto_alloc_ablkcipher ablkcipher_request_alloc"),
    ApiChange((5, 6),
              "struct timeval and struct timespec are not there for the kernel: use struct timespec64 or ktime_t",
              "y2038: hide timeval/timespec/itimerval/itimerspec types",
              r"storage size of '\w+' isn't known.*struct time(?:val|spec)\b|(?:incomplete|undefined) type 'struct "
              r"time(?:val|spec)'|" + _unknown("getnstimeofday", "current_kernel_time", "get_seconds")),
    _renamed((5, 6), "put_user_page() is called unpin_user_page()",
             "mm, tree-wide: rename put_user_page*() to unpin_user_page*()",
             "put_user_page put_user_pages put_user_pages_dirty_lock",
             "unpin_user_page unpin_user_pages unpin_user_pages_dirty_lock"),
    ApiChange((5, 7),
              "kallsyms_lookup_name() is not exported to modules: find the address with a kprobe, or use what is "
              "exported",
              "kallsyms: unexport kallsyms_lookup_name() and kallsyms_on_each_symbol()",
              _unknown("kallsyms_lookup_name", "kallsyms_on_each_symbol")),
    ApiChange((5, 7), "linux/vermagic.h is for the kernel's own use: leave it out",
              "kernel/module: Hide vermagic header file from general use",
              r"This header can be included from kernel/module\.c"),
    ApiChange((5, 8), "mmap_sem is called mmap_lock: use mmap_read_lock() and mmap_read_unlock()",
              "mmap locking API: rename mmap_sem to mmap_lock", _member("mm_struct", "mmap_sem"),
              _unknown("mmap_read_lock", "mmap_write_lock")),
    _counted((5, 8), "__vmalloc() has no argument for the protection", "mm: remove the pgprot argument to __vmalloc",
             "__vmalloc"),
    _renamed((5, 8), "use_mm() is called kthread_use_mm()", "kernel: move use_mm/unuse_mm to kthread.c",
             "use_mm unuse_mm", "kthread_use_mm kthread_unuse_mm"),
    _renamed((5, 8), "probe_kernel_read() is called copy_from_kernel_nofault()",
             "maccess: rename probe_kernel_{read,write} to copy_{from,to}_kernel_nofault",
             "probe_kernel_read probe_kernel_write", "copy_from_kernel_nofault copy_to_kernel_nofault"),
    _gone((5, 8), "kernel_setsockopt() is gone: use sock_set_reuseaddr(), tcp_sock_set_nodelay() and the like",
          "net: remove kernel_setsockopt", "kernel_setsockopt kernel_getsockopt"),
    _gone((5, 8), "i2c_new_device() is gone: use i2c_new_client_device(), which returns an error pointer",
          "i2c: remove i2c_new_device API", "i2c_new_device"),
    _gone((5, 8), "setup_irq() is gone: use request_irq()", "genirq: Remove setup_irq() and remove_irq()",
          "setup_irq remove_irq"),
    _moved((5, 8), "there is no linux/cryptohash.h: include <crypto/sha1.h>",
           "crypto: lib/sha1 - fold linux/cryptohash.h into crypto/sha.h", "linux/cryptohash.h"),
    _new((5, 9), "there is tasklet_setup(), whose callback takes the struct tasklet_struct",
         "tasklet: Introduce new initialization API", "tasklet_setup from_tasklet"),
    _counted((5, 9), "get_user_pages_remote() has no argument for the task",
             "mm/gup: remove task_struct pointer for all gup code", "get_user_pages_remote"),
    _gone((5, 9), "sched_setscheduler() is not exported to modules: use sched_set_fifo() or sched_set_normal()",
          "sched: Remove sched_setscheduler*() EXPORTs", "sched_setscheduler sched_setscheduler_nocheck"),
    _gone((5, 9), "blk_queue_make_request() and blk_alloc_queue(…) with a function are gone: set .submit_bio in struct "
          "block_device_operations", "block: move ->make_request_fn to struct block_device_operations",
          "blk_queue_make_request"),
    _changed((5, 9), "a protocol's setsockopt() takes a sockptr_t",
             "net: pass a sockptr_t into ->setsockopt", "sockptr_t"),
    ApiChange((5, 10), "set_fs() is gone: use kernel_read(), kernel_write() and the like",
              "x86: remove address space overrides using set_fs()",
              _unknown("set_fs", "get_fs", "KERNEL_DS", "mm_segment_t")),
    _gone((5, 10), "kzfree() is gone: use kfree_sensitive()", "mm, treewide: rename kzfree() to kfree_sensitive()",
          "kzfree"),
    _lacks((5, 11), "struct drm_driver has no callbacks for GEM objects: set them in struct drm_gem_object_funcs",
           "drm: Remove obsolete GEM and PRIME callbacks from struct drm_driver", "drm_driver",
           "gem_free_object_unlocked gem_vm_ops gem_open_object gem_close_object gem_prime_export "
           "gem_prime_get_sg_table gem_prime_vmap gem_prime_vunmap gem_prime_pin gem_prime_unpin"),
    _moved((5, 11), "crypto/sha.h is crypto/sha1.h and crypto/sha2.h",
           "crypto: sha - split sha.h into sha1.h and sha2.h", "crypto/sha.h", "crypto/sha1.h crypto/sha2.h"),
    _renamed((5, 11), "nla_strlcpy() is called nla_strscpy()", "treewide: rename nla_strlcpy to nla_strscpy.",
             "nla_strlcpy", "nla_strscpy"),
    _changed((5, 11), "an ftrace callback takes a struct ftrace_regs *",
             "ftrace: Have the callbacks receive a struct ftrace_regs instead of pt_regs", r"struct ftrace_regs \*"),
    _counted((5, 11), "xdp_rxq_info_reg() takes the NAPI id", "xsk: Propagate napi_id to XDP socket Rx path",
             "xdp_rxq_info_reg"),
    _lacks((5, 12), "struct bio has bi_bdev in place of bi_disk and bi_partno",
           "block: store a block_device pointer in struct bio", "bio", "bi_disk bi_partno", "bi_bdev"),
    _gone((5, 12),
          "crypto_alloc_cipher() is for the kernel's own use: include <crypto/internal/cipher.h>, and import the "
          "namespace CRYPTO_INTERNAL", "crypto: remove cipher routines from public crypto API",
          "crypto_alloc_cipher crypto_cipher_encrypt_one crypto_cipher_decrypt_one crypto_free_cipher"),
    _gone((5, 12), "find_module() and module_mutex are not exported to modules",
          "module: unexport find_module and module_mutex", "find_module module_mutex"),
    _counted((5, 12), "setattr_prepare(), inode_init_owner() and the like take a user namespace",
             "attr: handle idmapped mounts", "setattr_prepare", "setattr_copy", "inode_init_owner", "generic_fillattr"),
    ApiChange((5, 13), "the comparison of list_sort() takes const pointers",
              "treewide: Change list_sort to use const pointers",
              r"argument 3 of 'list_sort' from incompatible pointer"),
    _lacks((5, 14), "the state of a task is called __state: use READ_ONCE(task->__state) or task_is_running()",
           "sched: Change task_struct::state", "task_struct", "state", "__state"),
    _lacks((5, 14), "struct kprobe has no fault_handler: leave it out", "kprobes: Remove kprobe::fault_handler",
           "kprobe", "fault_handler"),
    _changed((5, 14), "a subdevice's pad operations take a struct v4l2_subdev_state *",
             "media: v4l2-subdev: add subdev-wide state struct", r"struct v4l2_subdev_state \*"),
    _new((5, 14), "there are blk_alloc_disk() and blk_cleanup_disk()",
         "block: add blk_alloc_disk and blk_cleanup_disk APIs", "blk_alloc_disk blk_mq_alloc_disk"),
    _gone((5, 15), "alloc_disk() is gone: use blk_alloc_disk() or blk_mq_alloc_disk()",
          "block: remove alloc_disk and alloc_disk_node", "alloc_disk alloc_disk_node"),
    _gone((5, 15), "alloc_tty_driver() is gone: use tty_alloc_driver()",
          "tty: drop alloc_tty_driver", "alloc_tty_driver"),
    _renamed((5, 15), "put_tty_driver() is called tty_driver_kref_put()", "tty: drop put_tty_driver", "put_tty_driver",
             "tty_driver_kref_put"),
    _gone((5, 15), "get_online_cpus() is gone: use cpus_read_lock()",
          "cpu/hotplug: Remove deprecated CPU-hotplug functions.", "get_online_cpus put_online_cpus"),
    _changed((5, 15), "a bus's remove() returns void", "bus: Make remove callback return void",
             r"void \(\*\)\(struct device \*\)", "remove"),
    _changed((5, 15), "ethtool's get_coalesce() and set_coalesce() take two arguments more",
             "ethtool: extend coalesce setting uAPI with CQE mode", r"struct kernel_ethtool_coalesce \*"),
    _new((5, 15), "there is eth_hw_addr_set()", "net: create netdev->dev_addr assignment helpers", "eth_hw_addr_set"),
    _moved((5, 16), "stdarg.h is not on the path: include <linux/stdarg.h>",
           "isystem: delete global -isystem compile option", r"stdarg\.h"),
    _gone((5, 16), "blk_get_request() is gone: use blk_mq_alloc_request()", "block: remove blk_{get,put}_request",
          "blk_get_request blk_put_request"),
    _renamed((5, 17), "PDE_DATA() is called pde_data()", "proc: remove PDE_DATA() completely", "PDE_DATA", "pde_data"),
    _renamed((5, 17), "complete_and_exit() is called kthread_complete_and_exit()",
             "exit: Rename complete_and_exit to kthread_complete_and_exit", "complete_and_exit",
             "kthread_complete_and_exit"),
    ApiChange((5, 17), "do_exit() is not exported to modules: let the thread's function return",
              "exit: Stop exporting do_exit", r'"do_exit" .*undefined!'),
    ApiChange((5, 17), "dev_addr is read-only: use eth_hw_addr_set() or dev_addr_mod()",
              "net: constify netdev->dev_addr",
              r"read-only location '\*?[^']*dev_addr|discards 'const' qualifier.*dev_addr"
              r"|read-only variable is not assignable.*dev_addr"),
    _changed((5, 17), "ethtool's get_ringparam() and set_ringparam() take two arguments more",
             "ethtool: extend ringparam setting/getting API with rx_buf_len", r"struct kernel_ethtool_ringparam \*"),
    _counted((5, 17), "blk_execute_rq() has no argument for the disk",
             "block: remove the gendisk argument to blk_execute_rq", "blk_execute_rq"),
    _gone((5, 18), "the pci_ functions for DMA are gone: use dma_alloc_coherent(), dma_map_single(), dma_set_mask()",
          'PCI: Remove the deprecated "pci-dma-compat.h" API',
          "pci_alloc_consistent pci_zalloc_consistent pci_free_consistent pci_map_single pci_unmap_single pci_map_page "
          "pci_unmap_page pci_map_sg pci_unmap_sg pci_dma_mapping_error pci_set_dma_mask pci_set_consistent_dma_mask "
          "PCI_DMA_TODEVICE PCI_DMA_FROMDEVICE PCI_DMA_BIDIRECTIONAL"),
    _lacks((5, 18), "struct kobj_type has default_groups in place of default_attrs",
           "kobject: kobj_type: remove default_attrs", "kobj_type", "default_attrs", "default_groups"),
    _moved((5, 18), "there is no linux/genhd.h: include <linux/blkdev.h>", "block: remove genhd.h", "linux/genhd.h"),
    _changed((5, 18), "an SPI driver's remove() returns void", "spi: make remove callback a void function",
             r"void \(\*\)\(struct spi_device \*\)"),
    _counted((5, 18), "bio_alloc() takes the block device and the operation",
             "block: pass a block_device and opf to bio_alloc", "bio_alloc"),
    _counted((5, 18), "bio_init() takes the block device and the operation",
             "block: pass a block_device and opf to bio_init", "bio_init"),
    _lacks((5, 18), "address_space_operations has dirty_folio() in place of set_page_dirty()",
           "fs: Remove aops ->set_page_dirty", "address_space_operations", "set_page_dirty", "dirty_folio"),
    _lacks((5, 18), "address_space_operations has invalidate_folio() in place of invalidatepage()",
           "fs: Remove aops->invalidatepage", "address_space_operations", "invalidatepage", "invalidate_folio"),
    _lacks((5, 18), "address_space_operations has readahead() in place of readpages()",
           "fs: Remove ->readpages address space operation", "address_space_operations", "readpages"),
    _gone((5, 18), "acpi_bus_get_device() is gone: use acpi_fetch_acpi_dev()",
          "ACPI: bus: Eliminate acpi_bus_get_device()", "acpi_bus_get_device"),
    _gone((5, 18), "netif_rx_ni() is gone: use netif_rx(), which may be called from anywhere",
          "net: Remove netif_rx_any_context() and netif_rx_ni().", "netif_rx_ni netif_rx_any_context"),
    _lacks((5, 19), "address_space_operations has read_folio() in place of readpage()", "mm,fs: Remove aops->readpage",
           "address_space_operations", "readpage", "read_folio"),
    _lacks((5, 19), "address_space_operations has release_folio() in place of releasepage()",
           "fs: Remove last vestiges of releasepage", "address_space_operations", "releasepage", "release_folio"),
    _counted((5, 19), "grab_cache_page_write_begin() has no flags", "fs: Remove flags parameter from aops->write_begin",
             "grab_cache_page_write_begin"),
    _gone((5, 19), "QUEUE_FLAG_DISCARD is gone: set the queue's limit for discards", "block: remove QUEUE_FLAG_DISCARD",
          "QUEUE_FLAG_DISCARD"),
    _gone((6, 0), "blk_cleanup_disk() is gone: use put_disk()", "block: remove blk_cleanup_disk", "blk_cleanup_disk"),
    _gone((6, 0), "bdevname() is gone: print with %pg", "block: remove bdevname", "bdevname"),
    _renamed((6, 0), "netif_tx_napi_add() is called netif_napi_add_tx()", "net: remove netif_tx_napi_add()",
             "netif_tx_napi_add", "netif_napi_add_tx"),
    ApiChange((6, 0), "register_shrinker() takes a name", "mm: shrinkers: provide shrinkers with names",
              _arguments("register_shrinker"), _arguments("register_shrinker")),
    _lacks((6, 0), "a connection is in links[] of a struct wireless_dev, or in its u.client",
           "wifi: cfg80211: do some rework towards MLO link APIs", "wireless_dev",
           "current_bss beacon_interval chandef"),
    _lacks((6, 0), "what a station roamed to is in links[] of the struct cfg80211_roam_info",
           "cfg80211: Indicate MLO connection info in connect and roam callbacks", "cfg80211_roam_info",
           "bssid bss channel", "links"),
    _changed((6, 0), "cfg80211's stop_ap() and the like take the number of a link",
             "wifi: cfg80211: do some rework towards MLO link APIs", r"struct net_device \*, unsigned int\)"),
    _counted((6, 1), "netif_napi_add() has no weight argument", "net: drop the weight argument from netif_napi_add",
             "netif_napi_add"),
    _changed((6, 1), "an i2c driver's remove() returns void", "i2c: Make remove callback return void",
             r"void \(\*\)\(struct i2c_client \*\)"),
    _changed((6, 1), "set_termios() takes a const struct ktermios *", "tty: Make ->set_termios() old ktermios const",
             r"const struct ktermios \*"),
    _changed((6, 1), "cfg80211's operations on keys take the number of a link",
             "wifi: cfg80211: Add link_id parameter to various key operations for MLO",
             r"struct net_device \*, int, u8, bool"),
    _lacks((6, 1), "the VMAs of a process are in a maple tree: use VMA_ITERATOR() and for_each_vma()",
           "mm: remove the vma linked list", "vm_area_struct", "vm_next vm_prev"),
    _lacks((6, 1), "the VMAs of a process are in a maple tree: use VMA_ITERATOR() and find_vma()",
           "mm: remove the vma linked list", "mm_struct", "mmap mm_rb"),
    _gone((6, 1), "prandom_u32() is gone: use get_random_u32()", "prandom: remove unused functions",
          "prandom_u32 prandom_bytes prandom_seed"),
    _renamed((6, 1), "DRM's helpers for CMA are called drm_gem_dma_…",
             "drm/gem: rename GEM CMA helpers to GEM DMA helpers",
             r"drm_gem_cma_\w+ DEFINE_DRM_GEM_CMA_FOPS DRM_GEM_CMA_DRIVER_OPS",
             r"drm_gem_dma_\w+ DEFINE_DRM_GEM_DMA_FOPS DRM_GEM_DMA_DRIVER_OPS"),
    _moved((6, 1), "drm/drm_gem_cma_helper.h is drm/drm_gem_dma_helper.h",
           "drm/gem: rename GEM CMA helpers to GEM DMA helpers", "drm/drm_gem_cma_helper.h",
           "drm/drm_gem_dma_helper.h"),
    _changed((6, 2), "a class's devnode() takes a const struct device *",
             "driver core: make struct class.devnode() take a const *", r"\(const struct device \*, *umode_t \*\)"),
    _changed((6, 2), "a class's dev_uevent() takes a const struct device *",
             "driver core: make struct class.dev_uevent() take a const *",
             r"\(const struct device \*, *struct kobj_uevent_env \*\)", "dev_uevent"),
    _new((6, 2), "there is timer_delete() beside del_timer()", "timers: Rename del_timer() to timer_delete()",
         "timer_delete timer_delete_sync timer_shutdown timer_shutdown_sync")._replace(stable=((6, 1),)),
    _renamed((6, 2), "prandom_u32_max() is called get_random_u32_below()", "prandom: remove prandom_u32_max()",
             "prandom_u32_max", "get_random_u32_below"),
    _gone((6, 2), "of_get_named_gpio_flags() is gone: use gpiod_get() and its kin",
          "gpiolib: of: remove of_get_gpio[_flags]() and of_get_named_gpio_flags()",
          "of_get_named_gpio_flags of_get_gpio of_get_gpio_flags"),
    _changed((6, 2), "an ACPI driver's remove() returns void", "ACPI: make remove callback of ACPI driver void",
             r"void \(\*\)\(struct acpi_device \*\)"),
    ApiChange((6, 3), "vm_flags is read-only: use vm_flags_set() and vm_flags_clear()",
              "mm: introduce vma->vm_flags wrapper functions",
              r"assignment of read-only member 'vm_flags'|'vm_flags'.*const-qualified|const-qualified .*'vm_flags'",
              _unknown("vm_flags_set", "vm_flags_clear", "vm_flags_mod")),
    ApiChange((6, 3), "an i2c driver's probe() takes the client only",
              "i2c: Switch .probe() to not take an id parameter",
              r"'int \(\*\)\(struct i2c_client \*\)' from incompatible pointer type 'int \(\*\)\(struct i2c_client "
              r"\*, ",
              r"'int \(\*\)\(struct i2c_client \*, .*' from incompatible pointer type 'int \(\*\)\(struct i2c_client "
              r"\*\)'"),
    ApiChange((6, 3), "inode operations take a struct mnt_idmap * in place of a struct user_namespace *",
              "fs: port ->create() to pass mnt_idmap", r"struct mnt_idmap \*.*from incompatible pointer",
              r"from incompatible pointer type '.*struct mnt_idmap \*|'struct mnt_idmap' declared inside"),
    _changed((6, 3), "a bus's uevent() takes a const struct device *",
             "driver core: make struct bus_type.uevent() take a const *",
             r"int \(\*\)\(const struct device \*, *struct kobj_uevent_env \*\)", "uevent"),
    ApiChange((6, 3), "a platform driver has remove_new(), which returns void, beside remove()",
              "platform: Provide a remove callback that returns no value", "", _member("platform_driver", "remove_new"),
              stable=((6, 1),)),
    _counted((6, 3), "iommu_map() takes flags for its allocations",
             "iommu: Add a gfp parameter to iommu_map()", "iommu_map"),
    _gone((6, 3), "u64_stats_fetch_begin_irq() is called u64_stats_fetch_begin()",
          "u64_stat: Remove the obsolete fetch_irq() variants.", "u64_stats_fetch_begin_irq u64_stats_fetch_retry_irq"),
    _counted((6, 3), "cfg80211_ch_switch_notify() and its kin take a bitmap of punctured channels",
             "wifi: cfg80211: include puncturing bitmap in channel switch events",
             "cfg80211_ch_switch_notify", "cfg80211_ch_switch_started_notify"),
    ApiChange((6, 3), "file locks are declared in a header of their own: include <linux/filelock.h>",
              "filelock: move file locking definitions to separate header file",
              _unknown("posix_lock_file", "locks_lock_file_wait", "posix_test_lock", "locks_copy_lock")
              + r"|(?:incomplete|undefined) (?:typedef|type) 'struct file_lock'", _header("linux/filelock.h")),
    _counted((6, 4), "class_create() takes the name only, without THIS_MODULE",
             "driver core: class: remove module * from class_create()", "class_create"),
    _lacks((6, 4), "struct class has no owner", "driver core: class: remove struct module owner out of struct class",
           "class", "owner"),
    _changed((6, 4), "the attributes of a class take a const struct class *",
             "driver core: class: mark the struct class for sysfs callbacks as constant",
             r"\(const struct class \*, *const struct class_attribute \*"),
    _counted((6, 4), "DEFINE_SEMAPHORE() takes the number to begin with",
             "Change DEFINE_SEMAPHORE() to take a number argument", "DEFINE_SEMAPHORE"),
    _lacks((6, 4), "the memory of a module is in mod->mem[]: there is no core_layout",
           "module: replace module_layout with module_memory", "module", "core_layout init_layout", "mem"),
    _counted((6, 5), "get_user_pages() and pin_user_pages() have no vmas argument",
             "mm/gup: remove unused vmas parameter from get_user_pages()", "get_user_pages", "pin_user_pages",
             "get_user_pages_remote", "pin_user_pages_remote"),
    _renamed((6, 5), "generic_file_splice_read() is gone: use filemap_splice_read()",
             "splice: Remove generic_file_splice_read()", "generic_file_splice_read", "filemap_splice_read"),
    ApiChange((6, 5), "what splits packets for GSO is declared in a header of its own: include <net/gso.h>",
              "net: move gso declarations and functions to their own files", _unknown("skb_gso_segment",
              "__skb_gso_segment", "skb_gso_validate_network_len", "skb_gso_validate_mac_len", "skb_mac_gso_segment", ),
              _header("net/gso.h"), stable=((6, 4),)),
    ApiChange((6, 5), "a protocol has no sendpage(): use sendmsg() with MSG_SPLICE_PAGES",
              "sock: Remove ->sendpage*() in favour of sendmsg(MSG_SPLICE_PAGES)", _member("proto_ops", "sendpage")
              + "|" + _member("proto", "sendpage") + "|"
              + _unknown("kernel_sendpage", "sock_no_sendpage", "tcp_sendpage")),
    _changed((6, 5), "a block device's open() takes the disk and a blk_mode_t",
             "block: replace fmode_t with a block-specific type for block open flags",
             r"\(struct gendisk \*, *blk_mode_t\)"),
    _changed((6, 5), "a block device's release() takes the disk only",
             "block: remove the unused mode argument to ->release", r"void \(\*\)\(struct gendisk \*\)"),
    _gone((6, 5), "register_sysctl_table() is gone: use register_sysctl()", "sysctl: Remove register_sysctl_table",
          "register_sysctl_table register_sysctl_paths"),
    _gone((6, 5), "struct pagevec is gone: use struct folio_batch", "mm: remove struct pagevec",
          "pagevec_init pagevec_release pagevec_add pagevec_count"),
    _changed((6, 5), "cfg80211's tdls_mgmt() takes the number of a link",
             "wifi: cfg80211: make TDLS management link-aware", r"struct net_device \*, const u8 \*, *int, *u8, *u8"),
    ApiChange((6, 6), "an inode's i_ctime is set with inode_set_ctime_to_ts() and read with inode_get_ctime()",
              "fs: rename i_ctime field to __i_ctime", _member("inode", "i_ctime"),
              _unknown("inode_set_ctime_to_ts", "inode_set_ctime_current", "inode_get_ctime")),
    _lacks((6, 6), "struct file_operations has iterate_shared only",
           "vfs: get rid of old '->iterate' directory operation", "file_operations", "iterate"),
    _lacks((6, 6), "an i2c driver has probe() and no probe_new()", "i2c: Drop legacy callback .probe_new()",
           "i2c_driver", "probe_new"),
    _moved((6, 6), "net/page_pool.h is net/page_pool/types.h and net/page_pool/helpers.h",
           "page_pool: split types and declarations from page_pool.h", "net/page_pool.h",
           "net/page_pool/types.h net/page_pool/helpers.h"),
    _gone((6, 6), "FBINFO_FLAG_DEFAULT is gone: leave it out", "fbdev: Remove FBINFO_DEFAULT and FBINFO_FLAG_DEFAULT",
          "FBINFO_FLAG_DEFAULT FBINFO_DEFAULT"),
    _changed((6, 6), "a terminal's write() takes u8 and size_t, and returns ssize_t",
             "tty: propagate u8 data to tty_operations::write()",
             r"ssize_t \(\*\)\(struct tty_struct \*, *const u8 \*, *size_t\)"),
    ApiChange((6, 7), "an inode's times are set with inode_set_atime_to_ts() and inode_set_mtime_to_ts()",
              "fs: rename inode i_atime and i_mtime fields", _member("inode", "i_atime", "i_mtime"),
              _unknown("inode_set_atime_to_ts", "inode_set_mtime_to_ts", "simple_inode_init_ts")),
    _renamed((6, 7), "a shrinker is made by shrinker_alloc() and shrinker_register()", "mm: shrinker: remove old APIs",
             "register_shrinker unregister_shrinker prealloc_shrinker",
             "shrinker_alloc shrinker_register shrinker_free"),
    _changed((6, 7), "cfg80211's change_beacon() takes a struct cfg80211_ap_update *",
             "wifi: cfg80211: split struct cfg80211_ap_settings", r"struct cfg80211_ap_update \*"),
    _renamed((6, 7), "asoc_rtd_to_codec() is called snd_soc_rtd_to_codec()",
             "ASoC: soc.h: convert asoc_xxx() to snd_soc_xxx()",
             "asoc_rtd_to_codec asoc_rtd_to_cpu asoc_substream_to_rtd",
             "snd_soc_rtd_to_codec snd_soc_rtd_to_cpu snd_soc_substream_to_rtd"),
    _gone((6, 8), "strlcpy() is gone: use strscpy()", "string: Remove strlcpy()", "strlcpy"),
    ApiChange((6, 8), "struct usb_driver has .driver in place of .drvwrap.driver",
              "USB: core: Use device_driver directly in struct usb_driver and usb_device_driver",
              _member("usb_driver", "drvwrap") + "|" + _member("usb_device_driver", "drvwrap"),
              _member("usb_driver", "driver"), stable=((6, 1), (6, 6))),
    _gone((6, 8), "blkdev_get_by_path() is gone: use bdev_file_open_by_path(), in 6.8 bdev_open_by_path()",
          "block: Remove blkdev_get_by_*() functions", "blkdev_get_by_path blkdev_get_by_dev blkdev_put"),
    _changed((6, 8), "ethtool's get_rxfh() and set_rxfh() take a struct ethtool_rxfh_param *",
             "net: ethtool: pass a pointer to parameters to get/set_rxfh ethtool ops", r"struct ethtool_rxfh_param \*"),
    _counted((6, 9), "blk_alloc_disk() takes the queue's limits",
             "block: pass a queue_limits argument to blk_alloc_disk", "blk_alloc_disk"),
    _counted((6, 9), "blk_mq_alloc_disk() takes the queue's limits",
             "block: pass a queue_limits argument to blk_mq_alloc_disk", "blk_mq_alloc_disk"),
    _counted((6, 9), "cfg80211_ch_switch_notify() and its kin find the bitmap of punctured channels in the chandef",
             "wifi: cfg80211/mac80211: move puncturing into chandef",
             "cfg80211_ch_switch_notify", "cfg80211_ch_switch_started_notify"),
    _changed((6, 9), "ethtool's get_eee() and set_eee() take a struct ethtool_keee *",
             "ethtool: replace struct ethtool_eee with a new struct ethtool_keee on kernel side",
             r"struct ethtool_keee \*"),
    _counted((6, 10), "__assign_str() takes the name only",
             "tracing/treewide: Remove second parameter of __assign_str()", "__assign_str"),
    _gone((6, 10), "follow_pfn() is gone: use follow_pfnmap_start(), in 6.10 and 6.11 follow_pte()",
          "mm: remove follow_pfn", "follow_pfn"),
    _gone((6, 10),
          "the flags of a tunnel are a bitmap: IP_TUNNEL_KEY_BIT and the like, with ip_tunnel_flags_set_present()",
          "ip_tunnel: convert __be16 tunnel flags to bitmaps", "TUNNEL_KEY TUNNEL_CSUM TUNNEL_SEQ TUNNEL_NOCACHE"),
    ApiChange((6, 10), "a serial port's data to send is a kfifo: use uart_fifo_get(), kfifo_out() and kfifo_len()",
              "tty: serial: switch from circ_buf to kfifo",
              _member("uart_state", "xmit") + "|" + _unknown("uart_circ_empty")),
    _changed((6, 11), "a platform driver's remove() returns void",
             "platform: Make platform_driver::remove() return void", r"void \(\*\)\(struct platform_device \*\)"),
    _changed((6, 11), "a bus's match() takes a const struct device_driver *",
             "driver core: have match() callback in struct bus_type take a const *",
             r"int \(\*\)\(struct device \*, *const struct device_driver \*\)", "match"),
    _changed((6, 11), "the handler of a sysctl takes a const struct ctl_table *",
             "sysctl: treewide: constify the ctl_table argument of proc_handlers", r"const struct ctl_table \*"),
    _changed((6, 11), "ethtool's get_ts_info() takes a struct kernel_ethtool_ts_info *",
             "net: Add struct kernel_ethtool_ts_info", r"struct kernel_ethtool_ts_info \*"),
    _gone((6, 11), "a queue's limits and flags are given in struct queue_limits when the disk is allocated",
          "block: remove unused queue limits API",
          "blk_queue_logical_block_size blk_queue_physical_block_size blk_queue_max_hw_sectors blk_queue_max_segments "
          "blk_queue_max_segment_size blk_queue_io_min QUEUE_FLAG_NONROT QUEUE_FLAG_ADD_RANDOM"),
    _gone((6, 12), "no_llseek is gone: leave .llseek out", "[tree-wide] finally take no_llseek out", "no_llseek"),
    _moved((6, 12), "asm/unaligned.h is linux/unaligned.h", "move asm/unaligned.h to linux/unaligned.h",
           "asm/unaligned.h", "linux/unaligned.h"),
    ApiChange((6, 12), "the file of a struct fd is had with fd_file()",
              "introduce fd_file(), convert all accessors to it.", _member("fd", "file"), _unknown("fd_file")),
    _gone((6, 12), "NETIF_F_LLTX is gone: set dev->lltx", "netdev_features: convert NETIF_F_LLTX to dev->lltx",
          "NETIF_F_LLTX"),
    _gone((6, 12), "NETIF_F_NETNS_LOCAL is gone: set dev->netns_local, since Linux 6.15 dev->netns_immutable",
          "netdev_features: convert NETIF_F_NETNS_LOCAL to dev->netns_local", "NETIF_F_NETNS_LOCAL"),
    _changed((6, 12), "a HID driver's report_fixup() returns a const __u8 *",
             "HID: change return type of report_fixup() to const",
             r"const (?:__u8|unsigned char) \* ?\(\*\)\(struct hid_device \*"),
    _lacks((6, 12), "usb_types of a power supply is a bitmask, and there is no num_usb_types",
           "power: supply: Change usb_types from an array into a bitmask", "power_supply_desc", "num_usb_types"),
    _changed((6, 12), "cfg80211's start_radar_detection() takes the number of a link",
             "wifi: cfg80211: handle DFS per link", r"struct cfg80211_chan_def \*, *(?:u32|unsigned int), *int\)"),
    _lacks((6, 12), "struct drm_mode_config_funcs has no output_poll_changed()",
           "drm: Remove struct drm_mode_config_funcs.output_poll_changed", "drm_mode_config_funcs",
           "output_poll_changed"),
    _changed((6, 12), "write_begin() and write_end() take a folio", "fs: Convert aops->write_begin to take a folio",
             r"struct folio \*"),
    ApiChange((6, 13), "MODULE_IMPORT_NS() and EXPORT_SYMBOL_NS() take the namespace as a string, in double quotes",
              "module: Convert symbol namespace to string literal",
              r"expected .* before '\w+'.*in expansion of macro '(?:MODULE_IMPORT_NS|EXPORT_SYMBOL_NS(?:_GPL)?)'"),
    _new((6, 13), "there is hrtimer_setup()", "hrtimers: Introduce hrtimer_setup() to replace hrtimer_init()",
         "hrtimer_setup"),
    _changed((6, 13), "cfg80211's set_monitor_channel() takes the struct net_device *",
             "wifi: cfg80211: pass net_device to .set_monitor_channel",
             r"struct wiphy \*, *struct net_device \*, *struct cfg80211_chan_def \*")._replace(stable=((6, 12),)),
    _changed((6, 14), "cfg80211's get_tx_power() takes the number of a link",
             "wifi: cfg80211: send MLO links tx power info in GET_INTERFACE",
             r"struct wireless_dev \*, *(?:int, *)?unsigned int, *int \*"),
    _lacks((6, 14), "struct drm_driver has no date: leave it out",
           "drm: remove driver date from struct drm_driver and all drivers", "drm_driver", "date"),
    _changed((6, 14), "d_revalidate() takes the parent's inode and the expected name",
             "Pass parent directory inode and expected name to ->d_revalidate()",
             r"struct inode \*, *const struct qstr \*, *struct dentry \*"),
    ApiChange((6, 15),
              "EXTRA_CFLAGS, EXTRA_AFLAGS and EXTRA_LDFLAGS are ignored: use ccflags-y, asflags-y and ldflags-y",
              "kbuild: remove EXTRA_*FLAGS support", ""),
    _gone((6, 15), "del_timer() and del_timer_sync() are gone: use timer_delete() and timer_delete_sync()",
          "treewide: Switch/rename to timer_delete[_sync]()", "del_timer del_timer_sync"),
    _gone((6, 15), "hrtimer_init() is gone: use hrtimer_setup()", "hrtimers: Delete hrtimer_init()", "hrtimer_init"),
    _changed((6, 15), "mkdir() returns a struct dentry *", "Change inode_operations.mkdir to return struct dentry *",
             r"struct dentry \* ?\(\*\)\(struct mnt_idmap"),
    _changed((6, 15), "a connector's mode_valid() takes a const struct drm_display_mode *",
             "drm/connector: make mode_valid take a const struct drm_display_mode",
             r"struct drm_connector \*, *const struct drm_display_mode \*\)"),
    _gone((6, 15), "crypto_alloc_comp() is gone: use crypto_alloc_acomp()",
          "crypto: remove obsolete 'comp' compression API",
          "crypto_alloc_comp crypto_comp_compress crypto_comp_decompress crypto_free_comp"),
    ApiChange((6, 15), "there are gpio_chip.set_rv() and set_multiple_rv(), which return int",
              "gpiolib: introduce gpio_chip setters that return values", "",
              _member("gpio_chip", "set_rv", "set_multiple_rv"), stable=((6, 12),)),
    _renamed((6, 16), "from_timer() is called timer_container_of()",
             "treewide, timers: Rename from_timer() to timer_container_of()", "from_timer", "timer_container_of"),
    _renamed((6, 16), "try_to_del_timer_sync() is called timer_delete_sync_try()",
             "treewide, timers: Rename try_to_del_timer_sync() as timer_delete_sync_try()", "try_to_del_timer_sync",
             "timer_delete_sync_try"),
    _renamed((6, 16), "rdmsrl() and wrmsrl() are called rdmsrq() and wrmsrq()",
             "x86/msr: Rename 'rdmsrl()' to 'rdmsrq()'", "rdmsrl wrmsrl", "rdmsrq wrmsrq"),
    _lacks((6, 16), "the index of a page is its folio's: use folio->index",
           "mm: rename page->index to page->__folio_index", "page", "index"),
    _lacks((6, 16), "address_space_operations has writepages() only", "fs: Remove aops->writepage",
           "address_space_operations", "writepage"),
    _changed((6, 17), "cfg80211's set_wiphy_params(), set_tx_power() and get_tx_power() take the number of a radio",
             "wifi: cfg80211/mac80211: Add support to get radio index",
             r"struct wiphy \*, *(?:struct wireless_dev \*, *)?int, *(?:u32\)|unsigned int\)|enum nl80211|unsigned "
             r"int, "
             r"*int \*)"),
    _changed((6, 17), "write_begin() and write_end() take a const struct kiocb *",
             "fs: change write_begin/write_end interface to take struct kiocb *", r"const struct kiocb \*"),
    _changed((6, 17), "a GPIO chip's set() returns int",
             "treewide: rename GPIO set callbacks back to their original names",
             r"int \(\*\)\(struct gpio_chip \*, *unsigned int, *int\)"),
    _lacks((6, 17), "set_rv() of struct gpio_chip is called set()",
           "treewide: rename GPIO set callbacks back to their original names", "gpio_chip", "set_rv set_multiple_rv"),
    _changed((6, 17), "a framebuffer's fb_create() takes the format's description",
             "drm: Pass the format info to .fb_create()", r"const struct drm_format_info \*"),
    _gone((6, 17),
          "irq_domain_add_linear() and its kin are gone: use irq_domain_create_linear() with a struct fwnode_handle *",
          "irqdomain: Drop irq_domain_add_*() functions",
          "irq_domain_add_linear irq_domain_add_tree irq_domain_add_simple irq_domain_add_nomap irq_domain_add_legacy"),
)
# fmt: on
