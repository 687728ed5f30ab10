// SPDX-License-Identifier: GPL-2.0
/*
 * Watches one user's openat() calls through the tracepoint sys_enter.
 *
 * The system call table is read-only and no longer exported, and the functions behind it are named
 * after the architecture. The tracepoint is the same everywhere, needs no patching, and can be left
 * again.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compat.h>
#include <linux/cred.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>
#include <asm/syscall.h>
#include <asm/unistd.h>

static uint uid = 65534;
module_param(uid, uint, 0444);
MODULE_PARM_DESC(uid, "The user whose calls are logged (default: nobody)");

static struct tracepoint *sys_enter;

static void watch_openat(void *data, struct pt_regs *regs, long id)
{
	unsigned long args[6];
	char path[128];
	long length;

	/* A 32-bit program numbers its calls differently. */
	if (id != __NR_openat || in_compat_syscall())
		return;
	if (from_kuid(&init_user_ns, current_uid()) != uid)
		return;

	syscall_get_arguments(current, regs, args);
	/* A probe may not sleep, so a path that is paged out is not waited for. */
	pagefault_disable();
	length = strncpy_from_user(path, (const char __user *)args[1], sizeof(path));
	pagefault_enable();

	if (length < 0)
		pr_info("uid %u opens a path that is not in memory\n", uid);
	else
		/* The path is the program's: it may hold a newline or worse. */
		pr_info("uid %u opens \"%*pE\"\n", uid, (int)length, path);
}

static void find_sys_enter(struct tracepoint *tracepoint, void *unused)
{
	if (!strcmp(tracepoint->name, "sys_enter"))
		sys_enter = tracepoint;
}

static int __init watch_init(void)
{
	for_each_kernel_tracepoint(find_sys_enter, NULL);
	if (!sys_enter) {
		pr_err("this kernel has no tracepoint sys_enter\n");
		return -ENOENT;
	}
	pr_info("watching uid %u\n", uid);
	return tracepoint_probe_register(sys_enter, watch_openat, NULL);
}

static void __exit watch_exit(void)
{
	tracepoint_probe_unregister(sys_enter, watch_openat, NULL);
	/* Nobody may be left in the probe when its code goes. */
	tracepoint_synchronize_unregister();
}

module_init(watch_init);
module_exit(watch_exit);

MODULE_DESCRIPTION("Watches one user's openat() calls");
MODULE_LICENSE("GPL");
