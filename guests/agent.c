// SPDX-License-Identifier: Apache-2.0
/*
 * Run commands that come over a virtio-serial port: the guest's end of kmlab's channel. It needs no network and no key
 * exchange, and a command costs no more than its own fork and exec. kmlab/host/channel/agent.py is the other end and
 * defines the frames. For the port, see Linux's Documentation/admin-guide/devices.txt and drivers/char/virtio_console.c.
 *
 * It has one thread and one ppoll(2). It needs no timer while it is idle: the port sends SIGIO when the host connects.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, CHUNK = 128 << 10, QUEUE = 1 << 20, STALL = 4 << 20 };
static const uint32_t MAGIC = 0x314d4b7f;

struct frame {
	uint32_t magic, kind, id, length;
};

struct buffer {
	char *bytes;
	size_t begin, end, room;
};

/* One command. in, out and err are ends of pipes, -1 after they are closed. */
struct task {
	uint32_t id;
	pid_t pid;
	int in, out, err, status;
	int exited, input_ends;
	struct buffer input;
};

static struct task tasks[MOST];
static int port = -1;
/* The kernel's ring buffer. Reading starts at the position that it had when the host connected. */
static int ring = -1;
static struct buffer from_host, to_host;

/* The only purpose of a signal is to end the ppoll(2) call, which unblocks it. */
static void wake(int number)
{
	(void)number;
}

static size_t held(const struct buffer *b)
{
	return b->end - b->begin;
}

static void put(struct buffer *b, const void *bytes, size_t size)
{
	if (b->begin) {
		memmove(b->bytes, b->bytes + b->begin, held(b));
		b->end -= b->begin;
		b->begin = 0;
	}
	if (b->end + size > b->room) {
		b->room = 2 * (b->end + size);
		b->bytes = realloc(b->bytes, b->room);
		if (!b->bytes)
			exit(1);
	}
	memcpy(b->bytes + b->end, bytes, size);
	b->end += size;
}

static void drop(struct buffer *b)
{
	free(b->bytes);
	memset(b, 0, sizeof *b);
}

static void tell(char kind, uint32_t id, const void *bytes, size_t size)
{
	struct frame head = { MAGIC, kind, id, size };

	put(&to_host, &head, sizeof head);
	put(&to_host, bytes, size);
}

static void shut(int *handle)
{
	if (*handle >= 0)
		close(*handle);
	*handle = -1;
}

static void forget(struct task *t)
{
	shut(&t->in);
	shut(&t->out);
	shut(&t->err);
	drop(&t->input);
	t->pid = 0;
}

/* The host has disconnected, or connects again: end all commands that it started. */
static void reset(void)
{
	for (struct task *t = tasks; t < tasks + MOST; t++)
		if (t->pid) {
			kill(-t->pid, SIGKILL);
			if (!t->exited)
				waitpid(t->pid, NULL, 0);
			forget(t);
		}
	drop(&to_host);
}

static struct task *find(uint32_t id)
{
	for (struct task *t = tasks; t < tasks + MOST; t++)
		if (t->pid && t->id == id)
			return t;
	return NULL;
}

static void refuse(uint32_t id, const char *why)
{
	int32_t code = 255;

	tell('e', id, why, strlen(why));
	tell('x', id, &code, sizeof code);
}

/* If memory runs out, the kernel kills the agent last (OOMScoreAdjust=). This does not apply to its commands. */
static void be_mortal(void)
{
	int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (score >= 0 && write(score, "0", 1) == 1)
		close(score);
}

static void start(uint32_t id, const char *line, size_t size)
{
	struct task *t = tasks;
	char *command = strndup(line, size);
	int in[2], out[2], err[2];
	sigset_t none;

	while (t < tasks + MOST && t->pid)
		t++;
	if (t == tasks + MOST || !command || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) {
		free(command);
		refuse(id, "the guest's agent has no room for one more command\n");
		return;
	}
	memset(t, 0, sizeof *t);
	sigemptyset(&none);
	t->id = id;
	t->pid = vfork();
	if (!t->pid) {
		setsid();
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		be_mortal();
		signal(SIGPIPE, SIG_DFL);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	free(command);
	close(in[0]);
	close(out[1]);
	close(err[1]);
	t->in = in[1];
	t->out = out[0];
	t->err = err[0];
	if (t->pid < 0) {
		forget(t);
		refuse(id, "the guest's agent could not fork\n");
		return;
	}
	for (int *handle = (int[]){ t->in, t->out, t->err, -1 }; *handle >= 0; handle++)
		fcntl(*handle, F_SETFL, O_NONBLOCK);
}

/*
 * Reseed the kernel's random number generator at once. Bytes that are only written to /dev/urandom wait in the input pool
 * for the next reseed, up to a minute, and until then all guests of one checkpoint draw the same numbers (random(4)).
 */
static int reseed(const char *bytes, size_t size)
{
	int pool = open("/dev/urandom", O_RDWR | O_CLOEXEC), code = 0;
	struct rand_pool_info *noise = malloc(sizeof *noise + size);

	if (pool < 0 || !noise) {
		code = errno;
	} else {
		noise->entropy_count = 8 * size;
		noise->buf_size = size;
		memcpy(noise->buf, bytes, size);
		if (ioctl(pool, RNDADDENTROPY, noise) || ioctl(pool, RNDRESEEDCRNG))
			code = errno;
	}
	free(noise);
	shut(&pool);
	return code;
}

/* Set the clock and reseed. After a restore, the clock is late and the random numbers are those of every other guest. */
static void refresh(uint32_t id, const char *bytes, size_t size)
{
	struct timespec now = { 0 };
	int64_t when[2];
	int32_t code = EINVAL;

	if (size > sizeof when) {
		memcpy(when, bytes, sizeof when);
		now.tv_sec = when[0];
		now.tv_nsec = when[1];
		code = reseed(bytes + sizeof when, size - sizeof when);
		if (!code && clock_settime(CLOCK_REALTIME, &now))
			code = errno;
	}
	tell('x', id, &code, sizeof code);
}

/* Send a whole file, with a title line in the format of tail(1). */
static void tell_file(uint32_t id, const char *path)
{
	char bytes[CHUNK];
	int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ssize_t size;

	if (file < 0)
		return;
	size = snprintf(bytes, sizeof bytes, "==> %s <==\n", path);
	do {
		if (size > 0)
			tell('o', id, bytes, size);
		size = read(file, bytes, sizeof bytes);
	} while (size > 0 && held(&to_host) < STALL);
	tell('o', id, "\n", 1);
	close(file);
}

/* Write a mark into the kernel log, then send the files that match the patterns. Each word ends with NUL. */
static void look(uint32_t id, const char *words, size_t size)
{
	const char *end = words + size;
	int32_t code = 0;

	if (!size || end[-1]) {
		code = EINVAL;
		size = 0;
	}
	if (size && *words) {
		/* Open the file again for each mark: the kernel limits the rate of each open file (printk.devkmsg). */
		int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
		char line[256];
		int length = snprintf(line, sizeof line, "<5>%s\n", words);

		if (log < 0 || write(log, line, length < (int)sizeof line ? length : (int)sizeof line) < 0)
			code = errno;
		shut(&log);
	}
	for (const char *word = words; size && (word += strlen(word) + 1) < end;) {
		glob_t found;

		if (!glob(word, 0, NULL, &found))
			for (size_t i = 0; i < found.gl_pathc; i++)
				tell_file(id, found.gl_pathv[i]);
		globfree(&found);
	}
	tell('x', id, &code, sizeof code);
}

/*
 * Send the kernel's records since the host connected or since its last request. The code is EPIPE if the kernel overwrote
 * records before the agent could read them (Documentation/ABI/testing/dev-kmsg).
 */
static void tell_log(uint32_t id)
{
	char record[16 << 10];
	int32_t code = ring < 0 ? ENODEV : 0;
	ssize_t size;

	while (ring >= 0 && held(&to_host) < STALL) {
		size = read(ring, record, sizeof record);
		if (size > 0)
			tell('o', id, record, size);
		else if (size < 0 && errno == EPIPE)
			code = EPIPE;
		else if (size == 0 || errno != EINTR)
			break;
	}
	tell('x', id, &code, sizeof code);
}

static void obey(const struct frame *head, const char *bytes)
{
	struct task *t = find(head->id);

	switch (head->kind) {
	case 'h':
		reset();
		shut(&ring);
		ring = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (ring >= 0)
			lseek(ring, 0, SEEK_END);
		tell('h', head->id, bytes, head->length);
		break;
	case 'r':
		start(head->id, bytes, head->length);
		break;
	case 'w':
		refresh(head->id, bytes, head->length);
		break;
	case 'q':
		look(head->id, bytes, head->length);
		break;
	case 'k':
		tell_log(head->id);
		break;
	case 'i':
		if (t && t->in >= 0)
			put(&t->input, bytes, head->length);
		break;
	case 'f':
		if (t)
			t->input_ends = 1;
	}
}

/* Obey each complete frame. Skip bytes that are not a frame, one by one, up to the next frame. */
static void parse(void)
{
	struct frame head;

	while (held(&from_host) >= sizeof head) {
		memcpy(&head, from_host.bytes + from_host.begin, sizeof head);
		if (head.magic != MAGIC || head.length > CHUNK) {
			from_host.begin++;
			continue;
		}
		if (held(&from_host) < sizeof head + head.length)
			return;
		obey(&head, from_host.bytes + from_host.begin + sizeof head);
		from_host.begin += sizeof head + head.length;
	}
}

static void hear(void)
{
	char bytes[CHUNK];
	ssize_t size = read(port, bytes, sizeof bytes);

	if (size > 0) {
		put(&from_host, bytes, size);
		parse();
	}
}

static void answer(void)
{
	ssize_t size = write(port, to_host.bytes + to_host.begin, held(&to_host) < CHUNK ? held(&to_host) : CHUNK);

	if (size > 0)
		to_host.begin += size;
}

static void feed(struct task *t)
{
	if (t->in >= 0 && held(&t->input)) {
		ssize_t size = write(t->in, t->input.bytes + t->input.begin, held(&t->input));

		if (size > 0)
			t->input.begin += size;
		else if (size < 0 && errno != EAGAIN && errno != EINTR)
			shut(&t->in);
	}
	if (t->in < 0)
		drop(&t->input);
	if (t->input_ends && !held(&t->input))
		shut(&t->in);
}

/* Return whether data arrived. */
static int pass(struct task *t, int *handle, char kind)
{
	char bytes[CHUNK];
	ssize_t size = *handle < 0 ? 0 : read(*handle, bytes, sizeof bytes);

	if (size > 0)
		tell(kind, t->id, bytes, size);
	else if (!size || (errno != EAGAIN && errno != EINTR))
		shut(handle);
	return size > 0;
}

/* For each command that has ended, send its last output and then its code, unless the host is too slow to read it. */
static void reap(void)
{
	for (struct task *t = tasks; t < tasks + MOST; t++) {
		if (t->pid && !t->exited)
			t->exited = waitpid(t->pid, &t->status, WNOHANG) == t->pid;
		if (!t->pid || !t->exited)
			continue;
		while (held(&to_host) < QUEUE && (pass(t, &t->out, 'o') || pass(t, &t->err, 'e')))
			;
		if (held(&to_host) < QUEUE) {
			int32_t code = WIFEXITED(t->status) ? WEXITSTATUS(t->status) : 128 + WTERMSIG(t->status);

			tell('x', t->id, &code, sizeof code);
			forget(t);
		}
	}
}

static int connected(void)
{
	struct pollfd look = { port, POLLIN | POLLOUT, 0 };

	return poll(&look, 1, 0) >= 0 && !(look.revents & POLLHUP);
}

int main(int count, char **words)
{
	struct sigaction act = { .sa_handler = wake };
	sigset_t blocked, open_to_all;

	if (count < 2 || (port = open(words[1], O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0) {
		perror(count < 2 ? "agent: which port?" : words[1]);
		return 1;
	}
	sigemptyset(&open_to_all);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigaddset(&blocked, SIGIO);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	sigaction(SIGCHLD, &act, NULL);
	sigaction(SIGIO, &act, NULL);
	signal(SIGPIPE, SIG_IGN);
	fcntl(port, F_SETOWN, getpid());
	fcntl(port, F_SETFL, O_NONBLOCK | O_ASYNC);
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("USER", "root", 1);
	setenv("LOGNAME", "root", 1);
	setenv("SHELL", "/bin/sh", 1);
	if (chdir("/root"))
		perror("/root");
	/* Tell the host that this is a new agent: the host may still wait for an answer of the previous agent, which is dead. */
	tell('h', 0, "new", 3);
	for (;;) {
		struct pollfd asked[1 + 3 * MOST];
		struct task *whose[1 + 3 * MOST];
		size_t stalled = 0;
		int number = 1, there = connected();

		reap();
		if (!there) {
			reset();
			drop(&from_host);
		}
		for (struct task *t = tasks; t < tasks + MOST; t++) {
			if (!t->pid)
				continue;
			feed(t);
			stalled = held(&t->input) > stalled ? held(&t->input) : stalled;
			if (t->in >= 0 && held(&t->input)) {
				whose[number] = t;
				asked[number++] = (struct pollfd){ t->in, POLLOUT, 0 };
			}
			for (int *handle = &t->out; handle <= &t->err && held(&to_host) < QUEUE; handle++)
				if (*handle >= 0) {
					whose[number] = t;
					asked[number++] = (struct pollfd){ *handle, POLLIN, 0 };
				}
		}
		/* Do not poll a port without a host, because it is always ready. SIGIO reports the next host. */
		asked[0] = (struct pollfd){ there ? port : -1, held(&to_host) ? POLLOUT : 0, 0 };
		if (stalled < STALL)
			asked[0].events |= POLLIN;
		if (ppoll(asked, number, NULL, &open_to_all) < 0)
			continue;
		for (int i = 1; i < number; i++) {
			struct task *t = whose[i];

			if (!asked[i].revents || !t->pid)
				continue;
			if (asked[i].fd == t->out)
				pass(t, &t->out, 'o');
			else if (asked[i].fd == t->err)
				pass(t, &t->err, 'e');
			else
				feed(t);
		}
		if (asked[0].revents & POLLOUT)
			answer();
		if (asked[0].revents & POLLIN)
			hear();
	}
}
