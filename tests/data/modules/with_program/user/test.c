/* SPDX-License-Identifier: GPL-2.0 */
#include <stdio.h>

int main(void)
{
	FILE *answer = fopen("/sys/module/with_program/parameters/answer", "r");
	int number = 0;

	return !answer || fscanf(answer, "%d", &number) != 1 || number != 42;
}
