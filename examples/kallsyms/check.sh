#!/bin/sh
# A module's names stand in the table with the module's own name in brackets behind them.
set -eu

grep '\[kallsyms\]' /proc/kallsyms
awk '$3 == "landmark_visit" && $4 == "[kallsyms]" && $1 !~ /^0+$/ { found = 1 } END { exit !found }' /proc/kallsyms
