/* SPDX-License-Identifier: GPL-2.0 */
/* What the modules of this folder export to one another. */
#ifndef MULTI_H
#define MULTI_H

void multi_base_greet(const char *who);
void multi_user_greet(void);

#endif
