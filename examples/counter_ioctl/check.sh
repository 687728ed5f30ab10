#!/bin/sh
# Builds the program and runs it.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gcc -Wall -O2 -o "$work/count" count.c
"$work/count"
