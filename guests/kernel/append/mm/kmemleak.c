
// SPDX-License-Identifier: GPL-2.0
/*
 * kmlab adds this to the end of mm/kmemleak.c in the kernels that it builds.
 *
 * /sys/kernel/debug/kmemleak_by lists the memory that is still allocated and that some modules have asked for, also ones
 * whose init failed or that are gone: write their names, then read. After a module is gone, that is what it did not free.
 * Unlike a scan, this takes no minimum age and no search for pointers, so it takes milliseconds. A place in a module's
 * code is written NAME:text+OFFSET or NAME:init+OFFSET, as the module has no address any more.
 */
#include <linux/module.h>
#include <linux/version.h>

#define KMLAB_LOADS 2048
#define KMLAB_NAMES 16

struct kmlab_load {
	char name[MODULE_NAME_LEN];
	unsigned long text, text_size, init, init_size;
	unsigned long since; /* jiffies */
};

/* The newest load is at kmlab_count - 1. */
static struct kmlab_load kmlab_loads[KMLAB_LOADS];
static unsigned int kmlab_count;
static char kmlab_names[KMLAB_NAMES][MODULE_NAME_LEN];
static unsigned int kmlab_name_count;
static DEFINE_MUTEX(kmlab_mutex);

static int kmlab_note_load(struct notifier_block *block, unsigned long state, void *data)
{
	struct module *module = data;
	struct kmlab_load *load;

	if (state != MODULE_STATE_COMING)
		return NOTIFY_OK;
	mutex_lock(&kmlab_mutex);
	load = &kmlab_loads[kmlab_count++ % KMLAB_LOADS];
	strscpy(load->name, module->name, sizeof(load->name));
	load->since = jiffies;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	load->text = (unsigned long)module->mem[MOD_TEXT].base;
	load->text_size = module->mem[MOD_TEXT].size;
	load->init = (unsigned long)module->mem[MOD_INIT_TEXT].base;
	load->init_size = module->mem[MOD_INIT_TEXT].size;
#else
	load->text = (unsigned long)module->core_layout.base;
	load->text_size = module->core_layout.text_size;
	load->init = (unsigned long)module->init_layout.base;
	load->init_size = module->init_layout.text_size;
#endif
	mutex_unlock(&kmlab_mutex);
	return NOTIFY_OK;
}

static struct notifier_block kmlab_loads_block = { .notifier_call = kmlab_note_load, .priority = INT_MAX };

/* Return the load whose code was at this address when the object was allocated. */
static struct kmlab_load *kmlab_load_at(unsigned long address, unsigned long when)
{
	unsigned int i, kept = min_t(unsigned int, kmlab_count, KMLAB_LOADS);

	for (i = 1; i <= kept; i++) {
		struct kmlab_load *load = &kmlab_loads[(kmlab_count - i) % KMLAB_LOADS];

		if (time_before(when, load->since))
			continue;
		if (address - load->text < load->text_size || address - load->init < load->init_size)
			return load;
	}
	return NULL;
}

static bool kmlab_is_asked_for(const struct kmlab_load *load)
{
	unsigned int i;

	for (i = 0; load && i < kmlab_name_count; i++)
		if (!strcmp(load->name, kmlab_names[i]))
			return true;
	return false;
}

/* Return when the first of these modules was loaded: what is older is not theirs. False if none was. */
static bool kmlab_first_load(unsigned long *when)
{
	unsigned int i, kept = min_t(unsigned int, kmlab_count, KMLAB_LOADS);

	for (i = kept; i >= 1; i--) {
		struct kmlab_load *load = &kmlab_loads[(kmlab_count - i) % KMLAB_LOADS];

		if (kmlab_is_asked_for(load)) {
			*when = load->since;
			return true;
		}
	}
	return false;
}

static bool kmlab_is_by(const unsigned long *entries, unsigned int count, unsigned long when)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (is_vmalloc_or_module_addr((void *)entries[i]) && kmlab_is_asked_for(kmlab_load_at(entries[i], when)))
			return true;
	return false;
}

static void kmlab_show_frame(struct seq_file *seq, unsigned long address, unsigned long when)
{
	struct kmlab_load *load = kmlab_load_at(address, when);

	if (!load)
		seq_printf(seq, "    [<%016lx>] %pS\n", address, (void *)address);
	else if (address - load->text < load->text_size)
		seq_printf(seq, "    [<%016lx>] %s:text+0x%lx\n", address, load->name, address - load->text);
	else
		seq_printf(seq, "    [<%016lx>] %s:init+0x%lx\n", address, load->name, address - load->init);
}

static int kmlab_show(struct seq_file *seq, void *unused)
{
	struct kmemleak_object *object;
	unsigned long *entries;
	unsigned int count, i;
	unsigned long first;
	bool allocated;

	mutex_lock(&kmlab_mutex);
	if (!kmlab_first_load(&first)) {
		mutex_unlock(&kmlab_mutex);
		return 0;
	}
	rcu_read_lock();
	list_for_each_entry_rcu(object, &object_list, object_list) {
		if (!object->trace_handle || time_before(object->jiffies, first))
			continue;
		raw_spin_lock_irq(&object->lock);
		allocated = object->flags & OBJECT_ALLOCATED;
		raw_spin_unlock_irq(&object->lock);
		if (!allocated)
			continue;
		count = stack_depot_fetch(object->trace_handle, &entries);
		if (!kmlab_is_by(entries, count, object->jiffies))
			continue;
		seq_printf(seq, "unreferenced object 0x%08lx (size %zu):\n", object->pointer, object->size);
		seq_printf(seq, "  comm \"%s\", pid %d, jiffies %lu\n", object->comm, object->pid, object->jiffies);
		seq_puts(seq, "  backtrace:\n");
		for (i = 0; i < count; i++)
			kmlab_show_frame(seq, entries[i], object->jiffies);
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
	kmlab_name_count = 0;
	rest = strim(text);
	while ((word = strsep(&rest, " ")) && kmlab_name_count < KMLAB_NAMES)
		if (*word)
			strscpy(kmlab_names[kmlab_name_count++], word, MODULE_NAME_LEN);
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
	register_module_notifier(&kmlab_loads_block);
	debugfs_create_file("kmemleak_by", 0600, NULL, NULL, &kmlab_fops);
	return 0;
}
late_initcall(kmlab_late_init);
