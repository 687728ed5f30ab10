#!/bin/sh
# The module carries the flag P, and so does the kernel: the lowest bit of its taint mask.
set -eu

grep P /sys/module/license/taint
tainted=$(cat /proc/sys/kernel/tainted)
echo "kernel.tainted is $tainted"
[ $((tainted & 1)) -eq 1 ]
