// SPDX-License-Identifier: Apache-2.0
/*
 * Call a device's functions with bad arguments: open, read, write, lseek, ioctl, mmap and close, drawn from a seed.
 *
 * fuzz DEVICE SEED CALLS SECONDS [careful]
 *
 * A child makes the calls and notes each in shared memory before it makes it; it stops after the first call that changed
 * the kernel's taint or brought a report to its log. The parent then prints the last calls, one a line, of which
 * kmlab/run/torture/fuzz_calls.py makes a C program. With `careful`, the child prints each call before it makes it: for
 * calls that end the kernel.
 *
 * The names of ioctls and the numbers of the module's sources come from a second file, which kmlab writes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct named { const char *name; unsigned long value; };
extern const struct named fuzz_ioctls[];
extern const unsigned fuzz_ioctls_count, fuzz_numbers_count;
extern const unsigned long long fuzz_numbers[];

/* PATTERN bytes fill a buffer, again and again; KEPT calls are printed at most. */
enum { SLOTS = 3, PATTERN = 128, LONGEST = 8192, KEPT = 1024, CORPUS = 256, SEEN = 1 << 14, POOL = 16, ABSENT = 6 };
enum { OPEN, CLOSE, READ, WRITE, LSEEK, IOCTL, MMAP };
static const char *const OPS[] = { "open", "close", "read", "write", "lseek", "ioctl", "mmap" };
/* Buffers lie here; the page behind is not mapped. Fixed, so that a call can be made again. */
static const uint64_t ARENA = 0x20000000, ARENA_SIZE = 0x10000;

struct call {
	uint64_t a, b, c, d;
	uint32_t length;	/* of the buffer that is filled before the call */
	uint8_t op, slot, used;	/* bytes of the pattern */
	uint8_t bytes[PATTERN];
};

static struct shared {
	volatile uint32_t count;
	char reason[16];
	struct call calls[KEPT];
} *shared;

static const char *device;
static int files[SLOTS] = { -1, -1, -1 }, tainted = -1, kmsg = -1;
static unsigned long taint_before;
static uint64_t state;
static struct call corpus[CORPUS];
static unsigned corpus_count;
static uint8_t seen[SEEN];
/* Words that the device gave: handles, sizes. */
static uint64_t pool[POOL];
static unsigned pool_count;

/* splitmix64 */
static uint64_t draw64(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static unsigned draw(unsigned below)
{
	return draw64() % below;
}

static uint64_t draw_number(void)
{
	static const uint64_t edges[] = {
		-1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe,
		0x7fffffffffffffff, 0x8000000000000000, 0xfff, 0x1000, 0x1001, 10, 100, 1000,
	};

	switch (draw(10)) {
	case 0: case 1:
		return draw(18);
	case 2:
		return draw(256);
	case 3:
		return (1ull << draw(64)) + draw(3) - 1;
	case 4:
		return edges[draw(sizeof(edges) / sizeof(*edges))];
	case 5: case 6: case 7:
		if (fuzz_numbers_count)
			return fuzz_numbers[draw(fuzz_numbers_count)] + draw(3) - 1;
		return draw(130);
	case 8:
		if (pool_count)
			return pool[draw(pool_count)] + draw(3) - 1;
		return 0;
	default:
		return draw64() >> draw(64);
	}
}

static uint64_t draw_bad_pointer(void)
{
	const uint64_t bad[] = {
		0, 1, ARENA + ARENA_SIZE, ARENA + ARENA_SIZE - 1, 0xffffffff81000000, 0x8000000000000000, -1, -4096,
	};

	return bad[draw(sizeof(bad) / sizeof(*bad))];
}

static void draw_word(struct call *call, unsigned at, unsigned width, uint64_t value)
{
	if (at + width <= sizeof(call->bytes))
		memcpy(call->bytes + at, &value, width);
}

/* Draw the content of a buffer: words of one width; often only one of them is not zero. */
static void draw_bytes(struct call *call, uint32_t length)
{
	static const uint8_t widths[] = { 1, 2, 4, 4, 4, 8, 8 };
	unsigned width = widths[draw(sizeof(widths))], at, only;

	call->length = length > LONGEST ? LONGEST : length;
	call->used = length > PATTERN ? PATTERN : length;
	memset(call->bytes, 0, sizeof(call->bytes));
	only = draw(3) ? ~0u : draw(call->used / width + 1) * width;
	for (at = 0; at < call->used; at += width)
		if (only == ~0u || only == at)
			draw_word(call, at, width, draw(14) ? draw_number() : ARENA + 0x8000);
}

/* Return where a buffer lies: somewhere in the arena, or so that it ends where the mapping ends. */
static uint64_t draw_place(uint32_t length)
{
	return draw(4) ? ARENA + 0x1000 * draw(8) : ARENA + ARENA_SIZE - length;
}

static uint32_t draw_length(void)
{
	return draw(3) ? draw(64) : (uint32_t)draw_number() % (LONGEST + 1);
}

static void draw_ioctl(struct call *call)
{
	unsigned long number = fuzz_ioctls[draw(fuzz_ioctls_count)].value;
	unsigned size = _IOC_SIZE(number);

	if (!draw(24))
		number = _IOC(draw(4), _IOC_TYPE(number), (_IOC_NR(number) + draw(9)) & 255, draw(2) ? size : draw(64));
	call->a = number;
	if (!draw(16)) {
		call->b = draw_bad_pointer();
	} else if (_IOC_DIR(number) == _IOC_NONE ? draw(3) : !draw(8)) {
		call->b = draw_number();
	} else {
		if (!size)
			size = 64;
		draw_bytes(call, draw(12) ? size : size + draw(3) - 1);
		call->b = draw_place(call->length);
	}
}

static int in_arena(uint64_t place, uint32_t length)
{
	return place >= ARENA && place <= ARENA + ARENA_SIZE - length;
}

static void draw_read_or_write(struct call *call)
{
	uint32_t length = draw_length();

	call->b = draw(10) ? length : draw_number();
	call->a = draw(16) ? draw_place(length) : draw_bad_pointer();
	if (call->op == WRITE && in_arena(call->a, length))
		draw_bytes(call, length);
}

static void draw_new(struct call *call)
{
	static const int ways[] = { O_RDWR | O_NONBLOCK, O_RDWR | O_NONBLOCK, O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_APPEND };
	static const uint8_t kinds[] = {
		OPEN, CLOSE, READ, READ, READ, WRITE, WRITE, WRITE, LSEEK, LSEEK, MMAP,
		IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL, IOCTL,
	};
	unsigned all = sizeof(kinds);

	call->op = kinds[draw(fuzz_ioctls_count ? all : all / 2)];
	switch (call->op) {
	case OPEN:
		call->a = ways[draw(sizeof(ways) / sizeof(*ways))];
		break;
	case READ: case WRITE:
		draw_read_or_write(call);
		break;
	case LSEEK:
		call->a = draw_number();
		call->b = draw(10) ? draw(3) : draw_number();
		break;
	case IOCTL:
		draw_ioctl(call);
		break;
	case MMAP:
		call->a = draw(4) ? 4096 * (1 + draw(16)) : draw_number();
		call->b = draw(4) ? PROT_READ | PROT_WRITE : draw(8);
		call->c = draw(4) ? MAP_SHARED : MAP_PRIVATE;
		call->d = draw(2) ? 0 : draw(2) ? 4096 * draw(64) : draw_number();
		break;
	}
}

/* Change one thing of a call that had a new result. */
static void draw_variant(struct call *call)
{
	static const uint8_t widths[] = { 1, 2, 4, 8 };

	*call = corpus[draw(corpus_count)];
	if (call->used && draw(4)) {
		unsigned width = widths[draw(4)];

		draw_word(call, draw(call->used / width + 1) * width, width, draw_number());
	} else if (call->op == IOCTL && !call->length) {
		call->b = draw_number();
	} else if (call->op == READ || call->op == WRITE) {
		call->b = draw_number();
	} else if (call->op == LSEEK) {
		call->a = draw_number();
	} else if (call->op == MMAP) {
		call->d = draw_number();
	}
}

static void draw_call(struct call *call)
{
	memset(call, 0, sizeof(*call));
	if (corpus_count && !draw(4))
		draw_variant(call);
	else
		draw_new(call);
	call->slot = draw(4) ? 0 : draw(SLOTS);
}

static void fill(const struct call *call)
{
	uint32_t at;

	for (at = 0; at < call->length; at++)
		((uint8_t *)call->a)[at] = call->bytes[at % call->used];
}

static int open_device(int flags)
{
	return open(device, flags | O_CLOEXEC);
}

/* Return the file of a slot, open in whatever way the device allows; else that of the first slot. */
static int file_of(unsigned slot)
{
	static const int ways[] = { O_RDWR, O_RDONLY, O_WRONLY };
	unsigned way;

	for (way = 0; files[slot] < 0 && way < 3; way++)
		files[slot] = open_device(ways[way] | O_NONBLOCK);
	return files[slot] < 0 ? files[0] : files[slot];
}

static sigjmp_buf outside;

static void leave(int number)
{
	(void)number;
	siglongjmp(outside, 1);
}

static void interrupt(int number)
{
	(void)number;
}

static void touch(volatile char *first, size_t length, int protection)
{
	signal(SIGBUS, leave);
	signal(SIGSEGV, leave);
	if (!sigsetjmp(outside, 1)) {
		char byte = protection & PROT_READ ? first[0] + first[length - 1] : 0;

		if (protection & PROT_WRITE)
			first[0] = first[length - 1] = byte;
	}
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	munmap((void *)first, length);
}

static long map(const struct call *call)
{
	char *first = mmap(NULL, call->a, call->b, call->c, file_of(call->slot), call->d);

	if (first == MAP_FAILED)
		return -1;
	touch(first, call->a, call->b);
	return 0;
}

static long close_slot(unsigned slot)
{
	int file = files[slot];

	files[slot] = -1;
	return close(file);
}

static long make(struct call *call)
{
	struct call placed = *call;

	placed.a = call->op == IOCTL ? call->b : call->a;
	if (call->length)
		fill(&placed);
	switch (call->op) {
	case OPEN:
		close_slot(call->slot);
		return files[call->slot] = open_device(call->a);
	case CLOSE:
		return close_slot(call->slot);
	case READ:
		return read(file_of(call->slot), (void *)call->a, call->b);
	case WRITE:
		return write(file_of(call->slot), (void *)call->a, call->b);
	case LSEEK:
		return lseek(file_of(call->slot), call->a, call->b);
	case IOCTL:
		return ioctl(file_of(call->slot), call->a, call->b);
	default:
		return map(call);
	}
}

/* Keep what the device gave, and calls whose result was not seen before. */
static void learn(const struct call *call, long result, int error)
{
	uint64_t mark = call->op * 31 + (call->op == IOCTL ? call->a : 0);
	uint64_t place = call->op == IOCTL ? call->b : call->a;

	mark = (mark * 31 + (result < 0 ? error : result ? 200 : 201)) * 0x9e3779b97f4a7c15 >> 32;
	if (!seen[mark % SEEN] && corpus_count < CORPUS) {
		seen[mark % SEEN] = 1;
		corpus[corpus_count++] = *call;
	}
	if (result >= 0 && call->op == IOCTL && call->length >= 4) {
		uint64_t word = 0;

		memcpy(&word, (void *)(place + draw(call->length / 4) * 4), 4);
		pool[pool_count < POOL ? pool_count++ : draw(POOL)] = word;
	}
}

static unsigned long read_taint(void)
{
	char text[32] = "";

	if (tainted < 0 || pread(tainted, text, sizeof(text) - 1, 0) <= 0)
		return 0;
	return strtoul(text, NULL, 10);
}

/* Return whether the kernel's log has a report since the last time. Not every report taints the kernel. */
static int has_report(void)
{
	static const char *const begins[] = {
		"BUG: ", "UBSAN: ", "Oops: ", "WARNING: CPU", "WARNING: possible", "WARNING: inconsistent",
		"WARNING: suspicious", "WARNING: bad", "WARNING: lock held", "WARNING: held lock",
		"INFO: trying to register", "general protection fault",
	};
	char record[8192];
	ssize_t size;
	unsigned i;

	while (kmsg >= 0 && ((size = read(kmsg, record, sizeof(record) - 1)) > 0 || (size < 0 && errno == EPIPE))) {
		const char *text;

		record[size < 0 ? 0 : size] = 0;
		text = strchr(record, ';');
		for (i = 0; text && strtoul(record, NULL, 10) < 8 && i < sizeof(begins) / sizeof(*begins); i++)
			if (!strncmp(text + 1, begins[i], strlen(begins[i])))
				return 1;
	}
	return 0;
}

static const char *noticed(void)
{
	return read_taint() != taint_before ? "taint" : has_report() ? "log" : NULL;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void print_call(unsigned number, const struct call *call)
{
	unsigned i;

	printf("call %u %s %u 0x%llx 0x%llx 0x%llx 0x%llx %u ", number, OPS[call->op], call->slot,
	       (unsigned long long)call->a, (unsigned long long)call->b, (unsigned long long)call->c,
	       (unsigned long long)call->d, call->length);
	for (i = 0; i < call->used; i++)
		printf("%02x", call->bytes[i]);
	printf(call->used ? "\n" : "-\n");
}

static void make_calls(unsigned most, double until, int careful)
{
	const struct itimerval limit = { .it_value.tv_usec = 50000, .it_interval.tv_usec = 50000 }, none = { 0 };
	const char *reason = NULL;
	struct sigaction action = { .sa_handler = interrupt };

	sigaction(SIGALRM, &action, NULL);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	while (!reason && shared->count < most && now() < until) {
		struct call *call = &shared->calls[shared->count % KEPT];
		long result;
		int error;

		draw_call(call);
		shared->count++;
		if (careful) {
			print_call(shared->count, call);
			fflush(stdout);
			usleep(1000);
		}
		setitimer(ITIMER_REAL, &limit, NULL);
		errno = 0;
		result = make(call);
		error = errno;
		setitimer(ITIMER_REAL, &none, NULL);
		learn(call, result, error);
		reason = noticed();
	}
	strcpy(shared->reason, reason ? reason : "end");
	_exit(0);
}

static void *map_or_end(void *place, size_t size, int flags)
{
	void *mapped = mmap(place, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (mapped == MAP_FAILED || (place && mapped != place)) {
		perror("mmap");
		exit(1);
	}
	return mapped;
}

/* Wait for the child, but not for ever: it may be stuck in the kernel. */
static void wait_for(pid_t child, double until)
{
	int status = 0;

	while (waitpid(child, &status, WNOHANG) == 0) {
		if (now() > until) {
			kill(child, SIGKILL);
			strcpy(shared->reason, "stuck");
			return;
		}
		usleep(5000);
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		strcpy(shared->reason, "died");
	else if (!strcmp(shared->reason, "end") && noticed())
		strcpy(shared->reason, "exit");
}

static int wait_for_device(void)
{
	int tries;

	for (tries = 0; tries < 50 && access(device, F_OK); tries++)
		usleep(100000);
	return access(device, F_OK);
}

int main(int argc, char **argv)
{
	const struct rlimit no_core = { 0, 0 }, small_files = { 1 << 24, 1 << 24 };
	double until;
	unsigned i;
	pid_t child;

	if (argc < 5)
		return 2;
	device = argv[1];
	state = strtoull(argv[2], NULL, 10);
	if (wait_for_device())
		return ABSENT;
	setrlimit(RLIMIT_CORE, &no_core);
	setrlimit(RLIMIT_FSIZE, &small_files);
	shared = map_or_end(NULL, sizeof(*shared), MAP_SHARED);
	map_or_end((void *)ARENA, ARENA_SIZE, MAP_PRIVATE | MAP_FIXED_NOREPLACE);
	tainted = open("/proc/sys/kernel/tainted", O_RDONLY | O_CLOEXEC);
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(kmsg, 0, SEEK_END);
	taint_before = read_taint();
	for (i = 0; i < fuzz_ioctls_count; i++)
		printf("name %s 0x%lx\n", fuzz_ioctls[i].name, fuzz_ioctls[i].value);
	fflush(stdout);
	until = now() + strtoul(argv[4], NULL, 10);
	child = fork();
	if (child < 0)
		return 1;
	if (!child)
		make_calls(strtoul(argv[3], NULL, 10), until, argc > 5);
	wait_for(child, until + 10);
	printf("%u calls, %s\n", shared->count, shared->reason);
	if (argc > 5 || !strcmp(shared->reason, "end"))
		return 0;
	for (i = shared->count > KEPT ? shared->count - KEPT : 0; i < shared->count; i++)
		print_call(i + 1, &shared->calls[i % KEPT]);
	return 0;
}
