#!/bin/sh
# Leaves a process behind that reads the file as soon as the module is gone.
setsid sh -c 'while [ -d /sys/module/proc_left ]; do sleep 0.2; done; cat /proc/proc_left' < /dev/null > /dev/null 2>&1 &
