/* SPDX-License-Identifier: GPL-2.0 */
int outer(int *place);
void frames_report(int sum);
int other(int *place, int sum);
