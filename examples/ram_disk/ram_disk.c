// SPDX-License-Identifier: GPL-2.0
/* A block device in memory, without a queue: each request is served at once. */
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/module.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

static unsigned int sectors = 8192;
module_param(sectors, uint, 0444);
MODULE_PARM_DESC(sectors, "Size of the disk in sectors of 512 bytes");

static int major;
static u8 *content;
static struct gendisk *disk;

static void copy_segment(struct bio_vec *segment, sector_t sector, bool write)
{
	void *memory = content + (sector << SECTOR_SHIFT);
	void *page = bvec_kmap_local(segment);

	if (write)
		memcpy(memory, page, segment->bv_len);
	else
		memcpy(page, memory, segment->bv_len);
	kunmap_local(page);
}

static void ram_disk_submit_bio(struct bio *bio)
{
	struct bio_vec segment;
	struct bvec_iter place;

	if (bio_end_sector(bio) > sectors) {
		bio_io_error(bio);
		return;
	}
	bio_for_each_segment(segment, bio, place)
		copy_segment(&segment, place.bi_sector, op_is_write(bio_op(bio)));
	bio_endio(bio);
}

static const struct block_device_operations ram_disk_operations = {
	.owner = THIS_MODULE,
	.submit_bio = ram_disk_submit_bio,
};

static struct gendisk *allocate_disk(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	return blk_alloc_disk(NULL, NUMA_NO_NODE);
#else
	struct gendisk *made = blk_alloc_disk(NUMA_NO_NODE);

	return made ?: ERR_PTR(-ENOMEM);
#endif
}

static int __init ram_disk_init(void)
{
	int error;

	content = vzalloc((size_t)sectors << SECTOR_SHIFT);
	if (!content)
		return -ENOMEM;
	major = register_blkdev(0, KBUILD_MODNAME);
	error = major;
	if (major < 0)
		goto free_content;
	disk = allocate_disk();
	error = PTR_ERR_OR_ZERO(disk);
	if (error)
		goto unregister;
	disk->major = major;
	disk->minors = 1;
	disk->fops = &ram_disk_operations;
	strscpy(disk->disk_name, KBUILD_MODNAME, sizeof(disk->disk_name));
	set_capacity(disk, sectors);
	error = add_disk(disk);
	if (error)
		goto put;
	pr_info("ram_disk: %u sectors\n", sectors);
	return 0;

put:
	put_disk(disk);
unregister:
	unregister_blkdev(major, KBUILD_MODNAME);
free_content:
	vfree(content);
	return error;
}

static void __exit ram_disk_exit(void)
{
	del_gendisk(disk);
	put_disk(disk);
	unregister_blkdev(major, KBUILD_MODNAME);
	vfree(content);
}

module_init(ram_disk_init);
module_exit(ram_disk_exit);

MODULE_DESCRIPTION("A disk in memory");
MODULE_LICENSE("GPL");
