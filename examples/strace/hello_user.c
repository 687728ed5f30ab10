// SPDX-License-Identifier: GPL-2.0
/* An ordinary program, built by check.sh: prints the hello that the module keeps in /proc. */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	char line[64];
	FILE *file = fopen("/proc/greeting", "r");

	if (!file || !fgets(line, sizeof(line), file)) {
		perror("/proc/greeting");
		return EXIT_FAILURE;
	}
	fclose(file);
	printf("%s", line);
	return EXIT_SUCCESS;
}
