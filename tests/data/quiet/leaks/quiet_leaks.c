// SPDX-License-Identifier: GPL-2.0
/* Memory that nobody frees. */
#include <linux/kref.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>
#include "bugs.h"

struct client {
	struct kref references;
	char name[32];
};

static void *kept[4];
static char *text;

static noinline int in_init(void)
{
	void *buffer = kmalloc(200, GFP_KERNEL);		/* HERE in_init */

	return buffer ? 0 : -ENOMEM;
}

static noinline void in_use(void)
{
	text = kstrdup("the newest", GFP_KERNEL);		/* HERE in_use */
}

static noinline void in_use_exit(void)
{
	kfree(text);
}

static noinline int of_vmalloc(void)
{
	kept[0] = vmalloc(3 * PAGE_SIZE);			/* HERE of_vmalloc */
	return kept[0] ? 0 : -ENOMEM;
}

static noinline int of_printing(void)
{
	text = kasprintf(GFP_KERNEL, "item %d", one);		/* HERE of_printing */
	return text ? 0 : -ENOMEM;
}

static void client_release(struct kref *references)
{
	kfree(container_of(references, struct client, references));
}

static noinline int reference_kept(void)
{
	struct client *client = kzalloc(sizeof(*client), GFP_KERNEL);	/* HERE reference_kept */

	if (!client)
		return -ENOMEM;
	kref_init(&client->references);
	kref_get(&client->references);
	kref_put(&client->references, client_release);
	kept[1] = client;
	return 0;
}

static noinline int of_percpu(void)
{
	kept[2] = (void __force *)__alloc_percpu(64, 8);	/* HERE of_percpu */
	return kept[2] ? 0 : -ENOMEM;
}

static noinline int half_a_list(void)
{
	int i;

	for (i = 0; i < 4; i++)
		kept[i] = kzalloc(40, GFP_KERNEL);		/* HERE half_a_list */
	return 0;
}

static noinline void half_a_list_exit(void)
{
	kfree(kept[0]);
	kfree(kept[1]);
}

static const struct bug bugs[] = {
	{ "in_init", in_init },
	{ "in_use", NULL, in_use_exit, in_use },
	{ "of_vmalloc", of_vmalloc },
	{ "of_printing", of_printing },
	{ "reference_kept", reference_kept },
	{ "of_percpu", of_percpu },
	{ "half_a_list", half_a_list, half_a_list_exit },
};
BUGS(bugs);
