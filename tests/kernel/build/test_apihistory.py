"""kmlab.kernel.apihistory: every change is recognised by what gcc says of the old form, from its release on."""

from __future__ import annotations

import functools

import pytest

from kmlab.kernel.build.api_changes import find_api_change, find_cause, find_version_tests
from kmlab.kernel.build.api_history import CHANGES, ApiChange

# The release, and what is wrong: `name` is not known, `name()` has other arguments, `owner.member` is no member,
# `<header>` is not there; `WANTED <- GIVEN` are the types of a callback.
OLD_FORMS = """\
4.15 setup_timer
4.15 timer_list.data
4.20 <linux/bootmem.h>
5.0 access_ok()
5.0 VERIFY_READ
5.0 do_gettimeofday
5.0 dma_zalloc_coherent
5.2 shash_desc.flags
5.3 force_sig()
5.4 <linux/pci-aspm.h>
5.5 crypto_alloc_blkcipher
5.5 <drm/drmP.h>
5.6 ioremap_nocache
5.6 crypto_alloc_ablkcipher
5.6 getnstimeofday
5.6 put_user_page
5.7 kallsyms_lookup_name
5.8 mm_struct.mmap_sem
5.8 __vmalloc()
5.8 use_mm
5.8 probe_kernel_read
5.8 kernel_setsockopt
5.8 i2c_new_device
5.8 setup_irq
5.8 <linux/cryptohash.h>
5.9 get_user_pages_remote()
5.9 sched_setscheduler
5.9 blk_queue_make_request
5.9 int (*)(struct socket *, int, int, sockptr_t, unsigned int) <- int (*)(struct socket *, int, int, char *, unsigned int)
5.10 set_fs
5.10 kzfree
5.11 drm_driver.gem_free_object_unlocked
5.11 <crypto/sha.h>
5.11 nla_strlcpy
5.11 void (*)(long unsigned int, long unsigned int, struct ftrace_ops *, struct ftrace_regs *) <- void (*)(long unsigned int, long unsigned int, struct ftrace_ops *, struct pt_regs *)
5.11 xdp_rxq_info_reg()
5.12 bio.bi_disk
5.12 crypto_alloc_cipher
5.12 find_module
5.12 setattr_prepare()
5.14 task_struct.state
5.14 kprobe.fault_handler
5.14 int (*)(struct v4l2_subdev *, struct v4l2_subdev_state *, struct v4l2_subdev_format *) <- int (*)(struct v4l2_subdev *, struct v4l2_subdev_pad_config *, struct v4l2_subdev_format *)
5.15 alloc_disk
5.15 alloc_tty_driver
5.15 put_tty_driver
5.15 get_online_cpus
5.15 void (*)(struct device *) <- int (*)(struct device *)
5.15 int (*)(struct net_device *, struct ethtool_coalesce *, struct kernel_ethtool_coalesce *, struct netlink_ext_ack *) <- int (*)(struct net_device *, struct ethtool_coalesce *)
5.16 <stdarg.h>
5.16 blk_get_request
5.17 PDE_DATA
5.17 complete_and_exit
5.17 void (*)(struct net_device *, struct ethtool_ringparam *, struct kernel_ethtool_ringparam *, struct netlink_ext_ack *) <- void (*)(struct net_device *, struct ethtool_ringparam *)
5.17 blk_execute_rq()
5.18 pci_map_single
5.18 PCI_DMA_TODEVICE
5.18 kobj_type.default_attrs
5.18 <linux/genhd.h>
5.18 void (*)(struct spi_device *) <- int (*)(struct spi_device *)
5.18 bio_alloc()
5.18 bio_init()
5.18 address_space_operations.set_page_dirty
5.18 address_space_operations.invalidatepage
5.18 address_space_operations.readpages
5.18 acpi_bus_get_device
5.18 netif_rx_ni
5.19 address_space_operations.readpage
5.19 address_space_operations.releasepage
5.19 grab_cache_page_write_begin()
5.19 QUEUE_FLAG_DISCARD
6.0 blk_cleanup_disk
6.0 bdevname
6.0 netif_tx_napi_add
6.0 register_shrinker()
6.0 wireless_dev.current_bss
6.0 cfg80211_roam_info.bssid
6.0 int (*)(struct wiphy *, struct net_device *, unsigned int) <- int (*)(struct wiphy *, struct net_device *)
6.1 netif_napi_add()
6.1 void (*)(struct i2c_client *) <- int (*)(struct i2c_client *)
6.1 void (*)(struct tty_struct *, const struct ktermios *) <- void (*)(struct tty_struct *, struct ktermios *)
6.1 int (*)(struct wiphy *, struct net_device *, int,  u8,  bool,  const u8 *, struct key_params *) <- int (*)(struct wiphy *, struct net_device *, u8,  bool,  const u8 *, struct key_params *)
6.1 vm_area_struct.vm_next
6.1 mm_struct.mmap
6.1 prandom_u32
6.1 drm_gem_cma_create
6.1 <drm/drm_gem_cma_helper.h>
6.2 char * (*)(const struct device *, umode_t *) <- char * (*)(struct device *, umode_t *)
6.2 dev_uevent: int (*)(const struct device *, struct kobj_uevent_env *) <- int (*)(struct device *, struct kobj_uevent_env *)
6.2 prandom_u32_max
6.2 of_get_named_gpio_flags
6.2 void (*)(struct acpi_device *) <- int (*)(struct acpi_device *)
6.3 int (*)(struct i2c_client *) <- int (*)(struct i2c_client *, const struct i2c_device_id *)
6.3 int (*)(struct mnt_idmap *, struct inode *, struct dentry *, umode_t) <- int (*)(struct user_namespace *, struct inode *, struct dentry *, umode_t)
6.3 uevent: int (*)(const struct device *, struct kobj_uevent_env *) <- int (*)(struct device *, struct kobj_uevent_env *)
6.3 iommu_map()
6.3 u64_stats_fetch_begin_irq
6.3 posix_lock_file
6.3 cfg80211_ch_switch_started_notify()
6.4 class_create()
6.4 class.owner
6.4 ssize_t (*)(const struct class *, const struct class_attribute *, char *) <- ssize_t (*)(struct class *, struct class_attribute *, char *)
6.4 DEFINE_SEMAPHORE()
6.4 module.core_layout
6.5 get_user_pages()
6.5 pin_user_pages()
6.5 generic_file_splice_read
6.5 skb_gso_segment
6.5 proto_ops.sendpage
6.5 kernel_sendpage
6.5 int (*)(struct gendisk *, blk_mode_t) <- int (*)(struct block_device *, fmode_t)
6.5 void (*)(struct gendisk *) <- void (*)(struct gendisk *, fmode_t)
6.5 register_sysctl_table
6.5 pagevec_init
6.5 int (*)(struct wiphy *, struct net_device *, const u8 *, int,  u8,  u8,  u16,  u32,  bool,  const u8 *, size_t) <- int (*)(struct wiphy *, struct net_device *, const u8 *, u8,  u8,  u16,  u32,  bool,  const u8 *, size_t)
6.6 inode.i_ctime
6.6 file_operations.iterate
6.6 i2c_driver.probe_new
6.6 <net/page_pool.h>
6.6 FBINFO_FLAG_DEFAULT
6.6 ssize_t (*)(struct tty_struct *, const u8 *, size_t) <- int (*)(struct tty_struct *, const unsigned char *, int)
6.7 inode.i_atime
6.7 register_shrinker
6.7 int (*)(struct wiphy *, struct net_device *, struct cfg80211_ap_update *) <- int (*)(struct wiphy *, struct net_device *, struct cfg80211_beacon_data *)
6.7 asoc_rtd_to_codec
6.8 strlcpy
6.8 usb_driver.drvwrap
6.8 blkdev_get_by_path
6.8 int (*)(struct net_device *, struct ethtool_rxfh_param *) <- int (*)(struct net_device *, u32 *, u8 *, u8 *)
6.9 cfg80211_ch_switch_notify()
6.9 blk_alloc_disk()
6.9 blk_mq_alloc_disk()
6.9 int (*)(struct net_device *, struct ethtool_keee *) <- int (*)(struct net_device *, struct ethtool_eee *)
6.10 __assign_str()
6.10 follow_pfn
6.10 TUNNEL_KEY
6.10 uart_state.xmit
6.11 void (*)(struct platform_device *) <- int (*)(struct platform_device *)
6.11 match: int (*)(struct device *, const struct device_driver *) <- int (*)(struct device *, struct device_driver *)
6.11 int (*)(const struct ctl_table *, int, void *, size_t *, loff_t *) <- int (*)(struct ctl_table *, int, void *, size_t *, loff_t *)
6.11 int (*)(struct net_device *, struct kernel_ethtool_ts_info *) <- int (*)(struct net_device *, struct ethtool_ts_info *)
6.11 blk_queue_logical_block_size
6.11 QUEUE_FLAG_NONROT
6.12 no_llseek
6.12 <asm/unaligned.h>
6.12 fd.file
6.12 NETIF_F_LLTX
6.12 NETIF_F_NETNS_LOCAL
6.12 const __u8 * (*)(struct hid_device *, __u8 *, unsigned int *) <- __u8 * (*)(struct hid_device *, __u8 *, unsigned int *)
6.12 power_supply_desc.num_usb_types
6.12 int (*)(struct wiphy *, struct net_device *, struct cfg80211_chan_def *, u32,  int) <- int (*)(struct wiphy *, struct net_device *, struct cfg80211_chan_def *, u32)
6.12 drm_mode_config_funcs.output_poll_changed
6.12 int (*)(struct file *, struct address_space *, loff_t, unsigned int, struct folio **, void **) <- int (*)(struct file *, struct address_space *, loff_t, unsigned int, struct page **, void **)
6.13 int (*)(struct wiphy *, struct net_device *, struct cfg80211_chan_def *) <- int (*)(struct wiphy *, struct cfg80211_chan_def *)
6.14 int (*)(struct wiphy *, struct wireless_dev *, unsigned int,  int *) <- int (*)(struct wiphy *, struct wireless_dev *, int *)
6.14 drm_driver.date
6.14 int (*)(struct inode *, const struct qstr *, struct dentry *, unsigned int) <- int (*)(struct dentry *, unsigned int)
6.15 del_timer
6.15 hrtimer_init
6.15 struct dentry * (*)(struct mnt_idmap *, struct inode *, struct dentry *, umode_t) <- int (*)(struct mnt_idmap *, struct inode *, struct dentry *, umode_t)
6.15 enum drm_mode_status (*)(struct drm_connector *, const struct drm_display_mode *) <- enum drm_mode_status (*)(struct drm_connector *, struct drm_display_mode *)
6.15 crypto_alloc_comp
6.16 from_timer
6.16 try_to_del_timer_sync
6.16 rdmsrl
6.16 page.index
6.16 address_space_operations.writepage
6.17 int (*)(struct wiphy *, int,  u32) <- int (*)(struct wiphy *, u32)
6.17 int (*)(struct wiphy *, struct wireless_dev *, int,  enum nl80211_tx_power_setting, int) <- int (*)(struct wiphy *, struct wireless_dev *, enum nl80211_tx_power_setting, int)
6.17 int (*)(struct wiphy *, struct wireless_dev *, int,  unsigned int,  int *) <- int (*)(struct wiphy *, struct wireless_dev *, unsigned int,  int *)
6.17 int (*)(const struct kiocb *, struct address_space *, loff_t, unsigned int, struct folio **, void **) <- int (*)(struct file *, struct address_space *, loff_t, unsigned int, struct folio **, void **)
6.17 int (*)(struct gpio_chip *, unsigned int, int) <- void (*)(struct gpio_chip *, unsigned int, int)
6.17 gpio_chip.set_rv
6.17 struct drm_framebuffer * (*)(struct drm_device *, struct drm_file *, const struct drm_format_info *, const struct drm_mode_fb_cmd2 *) <- struct drm_framebuffer * (*)(struct drm_device *, struct drm_file *, const struct drm_mode_fb_cmd2 *)
6.17 irq_domain_add_linear
""".splitlines()  # noqa: E501
NEW_FORMS = """\
5.9 tasklet_setup
5.14 blk_alloc_disk
5.15 eth_hw_addr_set
6.2 timer_delete
6.3 platform_driver.remove_new
6.13 hrtimer_setup
6.15 gpio_chip.set_rv
6.3 vm_flags_set
6.16 timer_container_of
6.7 shrinker_alloc
""".splitlines()
SPOKEN = [
    ((5, 6), "passing argument 4 of 'proc_create' from incompatible pointer type"),
    ((5, 7), '#error "This header can be included from kernel/module.c or *.mod.c only"'),
    ((5, 13), "passing argument 3 of 'list_sort' from incompatible pointer type"),
    ((5, 17), '"do_exit" undefined!'),
    ((5, 17), "assignment of read-only location '*dev->dev_addr'"),
    ((6, 3), "assignment of read-only member 'vm_flags'"),
    ((6, 13), "expected ',' or ';' before 'DMA_BUF'\nmod.c:9: in expansion of macro 'MODULE_IMPORT_NS'"),
]
WITHOUT_ERROR = {"kbuild: remove EXTRA_*FLAGS support"}
"""Changes that no compiler complains of."""


def split(line: str) -> tuple[tuple[int, int], str]:
    version, _, what = line.partition(" ")
    major, minor = version.split(".")
    return (int(major), int(minor)), message(what)


def message(what: str) -> str:
    """What gcc says."""
    if " <- " in what:
        member, _, types = what.rpartition(": ")
        wanted, given = types.split(" <- ")
        note = f"\nm.c:9: (near initialization for 'my_ops.{member}')" if member else ""
        return f"initialization of '{wanted}' from incompatible pointer type '{given}'{note}"
    if what.startswith("<"):
        return f"{what.strip('<>')}: No such file or directory"
    if what.endswith("()"):
        name = what.removesuffix("()")
        macro = name.isupper() or name in ("__assign_str", "blk_alloc_disk", "blk_mq_alloc_disk", "access_ok")
        return (
            f'macro "{name}" requires 2 arguments, but only 1 given'
            if macro
            else f"too many arguments to function '{name}'"
        )
    if "." in what:
        owner, _, member = what.partition(".")
        return f"'struct {owner}' has no member named '{member}'"
    return f"'{what}' undeclared" if what.isupper() else f"implicit declaration of function '{what}'; did you mean 'x'?"


def name(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}.0-demo"


def before(version: tuple[int, int]) -> tuple[int, int]:
    return (version[0], version[1] - 1) if version[1] else (version[0] - 1, 19)


@pytest.mark.parametrize(
    ("since", "said"), [*map(split, OLD_FORMS), *SPOKEN], ids=[*OLD_FORMS, *(s for _, s in SPOKEN)]
)
def test_the_old_form_is_recognised_from_the_release_on_that_changed_it(since: tuple[int, int], said: str) -> None:
    cause = find_cause(said, name(since))
    assert cause is not None and cause.change.since == since and cause.kernel_has_it
    earlier = find_cause(said, name(before(since)))
    assert earlier is None or earlier.change is not cause.change or not earlier.kernel_has_it or earlier.early


@pytest.mark.parametrize("line", NEW_FORMS)
def test_the_new_form_is_recognised_on_a_kernel_that_has_not_got_it(line: str) -> None:
    since, said = split(line)
    cause = find_cause(said, "5.4.0-demo" if since < (6, 0) else "5.16.0-demo")
    assert cause is not None and cause.change.since == since and not cause.kernel_has_it


def test_the_other_way_round_a_callback_needs_its_older_form() -> None:
    wanted, given = (
        "int (*)(struct wiphy *, struct cfg80211_chan_def *)",
        "int (*)(struct wiphy *, struct net_device *, struct cfg80211_chan_def *)",
    )
    said = find_api_change(message(f"{wanted} <- {given}"), "6.1.0-demo")
    assert said is not None and said.startswith("only since Linux 6.13") and said.endswith("so it needs the older form")


@functools.cache
def exampled() -> set[ApiChange]:
    """The changes that some example is recognised as."""
    said = [*map(split, OLD_FORMS), *map(split, NEW_FORMS), *SPOKEN]
    found = [find_cause(text, k) for since, text in said for k in (name(since), "5.4.0-demo", "5.16.0-demo")]
    return {cause.change for cause in found if cause}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.source)
def test_every_change_has_a_version_a_source_and_an_example(change: ApiChange) -> None:
    assert change.since >= (4, 15) and change.source and change.source == change.source.strip() and change.text
    assert (change in exampled()) != (change.source in WITHOUT_ERROR)


def test_the_changes_are_in_their_order() -> None:
    assert [change.since for change in CHANGES] == sorted(change.since for change in CHANGES)


def test_clang_s_words_for_a_callback_are_known() -> None:
    said = find_api_change(
        "incompatible function pointer types initializing 'int (*)(struct wiphy *, int, u32)' (aka 'int (*)(struct "
        "wiphy *, int, unsigned int)') with an expression of type 'int (struct wiphy *, u32)'",
        "6.17.1",
    )
    assert said is not None and said.startswith("since Linux 6.17 cfg80211's set_wiphy_params()")


def test_what_a_stable_release_took_over_is_said_to_be_there_already() -> None:
    said = find_api_change("'struct usb_driver' has no member named 'drvwrap'", "6.1.0-56-cloud-amd64")
    assert said is not None and said.endswith("and this 6.1.0-56-cloud-amd64 has taken that over")


def test_a_version_that_the_sources_test_for_may_have_come_early() -> None:
    error = "'struct class' has no member named 'owner'"
    assert find_api_change(error, "6.1.0-demo") is None
    tests = find_version_tests("#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)\n#if KERNEL_VERSION( 5,10,0 ) > X")
    assert tests == {(6, 4), (5, 10)}
    said = find_api_change(error, "6.1.0-demo", tests)
    assert said is not None and "has taken that over" in said
