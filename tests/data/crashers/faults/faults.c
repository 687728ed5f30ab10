// SPDX-License-Identifier: GPL-2.0
/* One trap of the processor, chosen by `what`. The line that traps is marked with the name. */
#include <linux/bug.h>
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

static char *what = "";
module_param(what, charp, 0444);

struct thing {
	long pad[5];
	long value;
};

static struct thing *volatile nothing;
static void (*volatile no_function)(void);
static volatile long zero;
static const long fixed = 42;

static noinline long null_read(void)
{
	return nothing->value;					/* HERE null_read */
}

static noinline void null_write(void)
{
	nothing->value = 7;					/* HERE null_write */
}

static noinline long null_call(void)
{
	no_function();						/* HERE null_call */
	return zero;
}

static noinline long page_fault(void)
{
	char *page = vmalloc(PAGE_SIZE);

	vfree(page);
	return READ_ONCE(page[16]);				/* HERE page_fault */
}

static noinline long negative_pointer(void)
{
	struct thing *volatile error = ERR_PTR(-ENODEV);

	return error->value;					/* HERE negative_pointer */
}

static noinline long non_canonical(void)
{
	struct thing *volatile wild = (struct thing *)0x5a5a5a5a5a5a5a5aUL;

	return wild->value;					/* HERE non_canonical */
}

static noinline void read_only(void)
{
	*(volatile long *)&fixed = 1;				/* HERE read_only */
}

static noinline void user_pointer(void)
{
	*(volatile long *)0x10000UL = 1;			/* HERE user_pointer */
}

static noinline long no_execute(void)
{
	void (*volatile data)(void) = (void *)&zero;

	data();							/* HERE no_execute */
	return zero;
}

static noinline long divide(void)
{
	return 42 / zero;					/* HERE divide */
}

static noinline void bug(void)
{
	BUG();							/* HERE bug */
}

static noinline void bug_on(long value)
{
	pr_info("faults: value %ld\n", value);
	BUG_ON(value == 42);					/* HERE bug_on */
}

static noinline void invalid_opcode(void)
{
	/* As a compiler leaves one where it thinks that nobody comes. */
	asm volatile("ud2");					/* HERE invalid_opcode */
}

static noinline void breakpoint(void)
{
	asm volatile("int3");					/* HERE breakpoint */
}

static noinline int smash(const char *from, size_t length)
{
	char small[16];
	size_t i;

	for (i = 0; i < length; i++)
		*((volatile char *)small + i) = from[i];
	return small[3];
}								/* HERE smash */

static noinline long recurse(long depth)
{
	volatile long room[32];

	room[depth & 31] = depth;
	return recurse(depth + 1) + room[depth & 31];		/* HERE recurse */
}

static __always_inline long innermost(struct thing *thing)
{
	return READ_ONCE(thing->value);				/* HERE inlined */
}

static __always_inline long middle(struct thing *thing)
{
	return innermost(thing) + 1;
}

static noinline long inlined(void)
{
	return middle(nothing) * 2;
}

static noinline long string_length(void)
{
	return strlen((const char *)nothing);			/* HERE string_length */
}

static noinline void copy_to_null(void)
{
	static char from[4096];

	memcpy((void *)nothing, from, (size_t)(zero + 4096));	/* HERE copy_to_null */
}

static noinline void free_garbage(void)
{
	kfree((void *)0x1234567812345678UL);			/* HERE free_garbage */
}

static noinline void give_up(void)
{
	panic("faults: %s", "nothing to be done");		/* HERE give_up */
}

static long __init run(void)
{
#define CASE(name, ...) if (!strcmp(what, name)) { __VA_ARGS__; return 1; }
	CASE("null_read", return null_read())
	CASE("null_write", null_write())
	CASE("null_call", return null_call())
	CASE("page_fault", return page_fault())
	CASE("negative_pointer", return negative_pointer())
	CASE("non_canonical", return non_canonical())
	CASE("read_only", read_only())
	CASE("user_pointer", user_pointer())
	CASE("no_execute", return no_execute())
	CASE("divide", return divide())
	CASE("bug", bug())
	CASE("bug_on", bug_on(42))
	CASE("invalid_opcode", invalid_opcode())
	CASE("breakpoint", breakpoint())
	CASE("smash", return smash("a text that is a good deal longer than sixteen bytes are, and then some", 70))
	CASE("recurse", return recurse(1))
	CASE("inlined", return inlined())
	CASE("string_length", return string_length())
	CASE("copy_to_null", copy_to_null())
	CASE("free_garbage", free_garbage())
	CASE("give_up", give_up())
	CASE("init_section", return *(volatile long *)0x18)	/* HERE init_section */
	return -EINVAL;
}

static int __init faults_init(void)
{
	long came = run();

	pr_info("faults: %s gave %ld\n", what, came);
	return came < 0 ? came : 0;
}

static void __exit faults_exit(void)
{
}

module_init(faults_init);
module_exit(faults_exit);

MODULE_DESCRIPTION("Traps");
MODULE_LICENSE("GPL");
