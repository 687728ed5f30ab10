# Wait until the guest is idle, and print facts about it. Runs over ssh in a booted base, just before its memory is saved.
if [ -d /run/systemd/system ]; then
	systemctl is-system-running --wait > /run/kmlab-state 2>/dev/null
	state=$(cat /run/kmlab-state)
	failed=$(systemctl --failed --no-legend --plain | cut -d' ' -f1 | tr '\n' ' ')
else
	# A kernel that kmlab built starts no systemd (guests/kernel/files/init).
	state=running failed=
fi
mkdir -p /var/lib/kmlab/modules

# Set the limits of the kernel's watchdogs. kmlab provides the numbers (kmlab/kernel/hang/watchdogs.py).
echo "$WATCHDOG_THRESH" > /proc/sys/kernel/watchdog_thresh
echo "$RCU_STALL" > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
echo "$HUNG_TASK" > /proc/sys/kernel/hung_task_timeout_secs
echo "$HUNG_TASK_INTERVAL" > /proc/sys/kernel/hung_task_check_interval_secs
echo -1 > /proc/sys/kernel/hung_task_warnings
echo 1 > /proc/sys/kernel/sysrq
# A break on the first serial port reaches the kernel even if no program answers, but only while a process has the port open.
stty -F /dev/ttyS0 -echo
if [ -d /run/systemd/system ]; then
	systemd-run --quiet --unit=kmlab-sysrq --property=StandardInput=file:/dev/ttyS0 sleep infinity
else
	setsid sleep infinity < /dev/ttyS0 > /dev/null 2>&1 &
fi
# Tell QEMU where the kernel's notes are, so that a memory dump contains them (VMCOREINFO).
modprobe --quiet qemu_fw_cfg
# Remove efi_pstore: kmlab does not read what a dying kernel writes into the firmware's variables, and some kernels crash again there.
modprobe --quiet --remove efi_pstore

sync
echo 3 > /proc/sys/vm/drop_caches
# Free memory still contains data from the boot. If it is zero, QEMU neither saves nor reads it. The kernel reserves some free
# memory (vm.min_free_kbytes: 44 MiB of 1 GiB), so lower this limit for a moment. The lowest 16 MiB stay reserved.
kept=$(cat /proc/sys/vm/min_free_kbytes)
echo 4096 > /proc/sys/vm/min_free_kbytes
mkdir -p /run/kmlab-zeros
mount -t tmpfs -o size=100% kmlab-zeros /run/kmlab-zeros
free=$(sed -n 's/^MemFree: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
if [ "$free" -gt 32768 ]; then
	# If the kernel clears memory when it allocates it, an allocation is enough and much faster than writing zeros.
	if grep -qs '^CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y' "/boot/config-$(uname -r)"; then
		fallocate --length "$((free - 32768))KiB" /run/kmlab-zeros/file
	else
		dd if=/dev/zero of=/run/kmlab-zeros/file bs=1M count="$((free / 1024 - 32))" status=none
	fi
fi
umount /run/kmlab-zeros
rmdir /run/kmlab-zeros
echo "$kept" > /proc/sys/vm/min_free_kbytes
printf 'state=%s\nfailed=%s\nrelease=%s\narch=%s\ntaint=%s\ncmdline=%s\n' "$state" "$failed" "$(uname -r)" "$(uname -m)" \
	"$(cat /proc/sys/kernel/tainted)" "$(cat /proc/cmdline)"
