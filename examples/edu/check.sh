#!/bin/sh
# Lets the device compute.
set -eu

for device in /sys/bus/pci/drivers/edu/0*; do
	echo 5 > "$device/factorial"
	grep "$(basename "$device")\|edu" /proc/interrupts
done
