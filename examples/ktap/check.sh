#!/bin/sh
# Prints results as TAP, as a program in user space does.
cd /sys/module/ktap/parameters || exit

result() {
	if [ "$1" = "$2" ]; then
		echo "ok $3"
	else
		echo "# expected $2, found $1"
		echo "not ok $3"
	fi
}

echo "TAP version 13"
echo "1..3"
result "$(cat larvae)" 0 "1 - no larva before an egg"
echo 4 > larvae
result "$(cat larvae)" 4 "2 - four eggs"
if echo many > larvae; then echo "not ok 3 - a word is no number"; else echo "ok 3 - a word is no number"; fi 2> /dev/null
