
// SPDX-License-Identifier: GPL-2.0
/*
 * kmlab adds this to the end of mm/kmemleak.c in the kernels that it builds.
 *
 * /sys/kernel/debug/kmemleak_by lists the memory that is still allocated and that code in some ranges of addresses has
 * asked for: write "FROM-TO FROM-TO ..." in hex, then read. After a module is gone, that is what it did not free. Unlike
 * a scan, this takes no minimum age and no search for pointers, so it takes milliseconds.
 */
#define KMLAB_RANGES 32

static unsigned long kmlab_from[KMLAB_RANGES], kmlab_to[KMLAB_RANGES];
static unsigned int kmlab_ranges;
static DEFINE_MUTEX(kmlab_mutex);

static bool kmlab_asked_for(const unsigned long *entries, unsigned int count)
{
	unsigned int i, r;

	for (i = 0; i < count; i++)
		for (r = 0; r < kmlab_ranges; r++)
			if (entries[i] >= kmlab_from[r] && entries[i] < kmlab_to[r])
				return true;
	return false;
}

static int kmlab_show(struct seq_file *seq, void *unused)
{
	struct kmemleak_object *object;
	unsigned long *entries;
	unsigned int count, i;
	bool allocated;

	mutex_lock(&kmlab_mutex);
	rcu_read_lock();
	list_for_each_entry_rcu(object, &object_list, object_list) {
		if (!object->trace_handle)
			continue;
		raw_spin_lock_irq(&object->lock);
		allocated = object->flags & OBJECT_ALLOCATED;
		raw_spin_unlock_irq(&object->lock);
		if (!allocated)
			continue;
		count = stack_depot_fetch(object->trace_handle, &entries);
		if (!kmlab_asked_for(entries, count))
			continue;
		seq_printf(seq, "unreferenced object 0x%08lx (size %zu):\n", object->pointer, object->size);
		seq_printf(seq, "  comm \"%s\", pid %d, jiffies %lu\n", object->comm, object->pid, object->jiffies);
		seq_puts(seq, "  backtrace:\n");
		for (i = 0; i < count; i++)
			seq_printf(seq, "    [<%016lx>] %pS\n", entries[i], (void *)entries[i]);
	}
	rcu_read_unlock();
	mutex_unlock(&kmlab_mutex);
	return 0;
}

static int kmlab_open(struct inode *inode, struct file *file)
{
	return single_open(file, kmlab_show, NULL);
}

static ssize_t kmlab_write(struct file *file, const char __user *user, size_t size, loff_t *ppos)
{
	char *text, *rest, *word;

	text = memdup_user_nul(user, min_t(size_t, size, PAGE_SIZE - 1));
	if (IS_ERR(text))
		return PTR_ERR(text);
	mutex_lock(&kmlab_mutex);
	kmlab_ranges = 0;
	rest = strim(text);
	while ((word = strsep(&rest, " ")) && kmlab_ranges < KMLAB_RANGES)
		if (sscanf(word, "%lx-%lx", &kmlab_from[kmlab_ranges], &kmlab_to[kmlab_ranges]) == 2)
			kmlab_ranges++;
	mutex_unlock(&kmlab_mutex);
	kfree(text);
	return size;
}

static const struct file_operations kmlab_fops = {
	.owner = THIS_MODULE,
	.open = kmlab_open,
	.read = seq_read,
	.write = kmlab_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int __init kmlab_late_init(void)
{
	debugfs_create_file("kmemleak_by", 0600, NULL, NULL, &kmlab_fops);
	return 0;
}
late_initcall(kmlab_late_init);
