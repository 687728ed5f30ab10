#!/bin/sh
# Builds the program outside the module's folder and looks at the system calls that a hello is made of.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gcc -Wall -O2 -o "$work/hello_user" hello_user.c
strace -e trace=openat,read,write -o "$work/calls" "$work/hello_user" | grep -x hello
cat "$work/calls"
grep -q 'openat(.*"/proc/greeting"' "$work/calls"
grep -q 'read([0-9]*, "hello' "$work/calls"
grep -q 'write(1, "hello' "$work/calls"
