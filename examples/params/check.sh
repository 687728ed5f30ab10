#!/bin/sh
# What was given at load can be read back, and what is mode 0644 can be changed.
set -eu

cd /sys/module/params/parameters
grep . my_int my_str my_int_array
echo 7 > my_int
[ "$(cat my_int)" = 7 ]
