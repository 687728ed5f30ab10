/* SPDX-License-Identifier: GPL-2.0 */
/* The interface of the module "absent". */
#ifndef ABSENT_H
#define ABSENT_H

void absent_greet(void);

#endif
