#!/bin/sh
# Leaves a process behind that has the device open, and ends only once the kernel counts it.
set -eu

setsid sleep 600 < /dev/in_use > /dev/null 2>&1 &
tries=50
until [ "$(cat /sys/module/in_use/refcnt)" -gt 0 ]; do
	tries=$((tries - 1))
	[ "$tries" -gt 0 ]
	sleep 0.1
done
