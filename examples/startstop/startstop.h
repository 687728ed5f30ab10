/* SPDX-License-Identifier: GPL-2.0 */
/* What the two halves share. */
#ifndef STARTSTOP_H
#define STARTSTOP_H

/* The jiffies at which the module was loaded. */
extern unsigned long startstop_since;

#endif
