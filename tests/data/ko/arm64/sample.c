// SPDX-License-Identifier: GPL-2.0
/* The shape of an arm64 module, without the kernel's headers: enough for modinfo, symbols and lines. */
#define in_section(name) __attribute__((section(name), used))

static const char license[] in_section(".modinfo") = "license=GPL";
static const char name[] in_section(".modinfo") = "sample";
static const char tag[] in_section(".modinfo") = "name=sample";
static const char vermagic[] in_section(".modinfo") = "vermagic=6.12.0-arm64 SMP mod_unload aarch64";
static char this_module[64] in_section(".gnu.linkonce.this_module");

int outer(volatile int *place);

static inline __attribute__((always_inline)) int inner(volatile int *place)
{
	*place = 42;
	return *place;
}

int outer(volatile int *place)
{
	int sum = 1;

	sum += inner(place);
	return sum;
}

in_section(".init.text") int init_module(void)
{
	volatile int *place = (volatile int *)name;

	return *place + outer(place);
}
