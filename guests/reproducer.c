// SPDX-License-Identifier: Apache-2.0
/*
@ABOUT@
 * gcc -w -o reproducer reproducer.c && ./reproducer, as root, with the module loaded
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

static const char device[] = "@DEVICE@";
static int files[3] = { -1, -1, -1 };

/* Say which call is next; no call that can be interrupted lasts longer than 0.05 s. */
static void step(int number)
{
	const struct itimerval limit = { .it_value.tv_usec = 50000, .it_interval.tv_usec = 50000 };

	printf("call %d\n", number);
	fflush(stdout);
	setitimer(ITIMER_REAL, &limit, NULL);
}

static int file(int slot)
{
	static const int ways[] = { O_RDWR, O_RDONLY, O_WRONLY };
	int way;

	for (way = 0; files[slot] < 0 && way < 3; way++)
		files[slot] = open(device, ways[way] | O_NONBLOCK | O_CLOEXEC);
	return files[slot] < 0 ? files[0] : files[slot];
}

static void close_file(int slot)
{
	close(files[slot]);
	files[slot] = -1;
}

static void open_again(int slot, int flags)
{
	close_file(slot);
	files[slot] = open(device, flags | O_CLOEXEC);
}

static void fill(unsigned long place, int length, const char *content, int size)
{
	int at;

	for (at = 0; at < length; at++)
		((char *)place)[at] = content[at % size];
}

static sigjmp_buf outside;

static void leave(int number)
{
	siglongjmp(outside, 1);
}

static void interrupt(int number)
{
}

/* Map, touch the first and the last byte, and unmap. */
static void map(int fd, unsigned long length, int protection, int flags, unsigned long offset)
{
	volatile char *first = mmap(NULL, length, protection, flags, fd, offset);

	if (first == MAP_FAILED)
		return;
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

int main(void)
{
	struct sigaction action = { .sa_handler = interrupt };
	int tries;

	for (tries = 0; tries < 50 && access(device, F_OK); tries++)
		usleep(100000);
	if (access(device, F_OK))
		return @ABSENT@;
	sigaction(SIGALRM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* All buffers lie here; the page behind it is not mapped. */
	if (mmap((void *)@ARENA@, @SIZE@, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)@ARENA@)
		return 1;
@CALLS@
	return 0;
}
