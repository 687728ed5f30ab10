# Runs once as root in the guest that becomes a base; every line it says about itself begins with "kmlab-bake:".
# @PACKAGES@, @HEADERS@ and @CMDLINE@ come from recipe.yaml. @KERNEL@ is the kernel that was asked for, whose packages
# are in the seed then; empty is the one that runs.
set -u
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
release=@KERNEL@

say() { printf '<5>kmlab-bake: %s\n' "$*" > /dev/kmsg; }
die() { say "error $*"; sync; poweroff --force --force; sleep 60; }
apt() { apt-get --quiet --option DPkg::Lock::Timeout=300 --option Acquire::Retries=3 "$@" 2>&1; }
missing() { for package in "$@"; do dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || echo "$package"; done; }

if [ -n "$release" ]; then
	say "step installing kernel $release"
	mkdir -p /run/kmlab/seed
	mount -o ro LABEL=cidata /run/kmlab/seed || die "the seed with the packages of kernel $release cannot be mounted"
	set -- /run/kmlab/seed/*.deb
	# Without any, the image has this kernel already.
	if [ -e "$1" ]; then
		apt install --yes --no-install-recommends --allow-downgrades "$@" > /run/kmlab/apt.log ||
			die "installing kernel $release: $(grep -m1 -E '^(E:|dpkg: error)' /run/kmlab/apt.log)"
	fi
	umount /run/kmlab/seed
else
	release=$(uname -r)
fi
headers=$(printf '%s' '@HEADERS@' | sed "s/{release}/$release/")
[ -e "/boot/vmlinuz-$release" ] || die "kernel $release is not in /boot"

say "kernel $release"
wanted=$(missing @PACKAGES@ "$headers")
if [ -n "$wanted" ]; then
	say "step installing" $wanted
	apt update > /run/kmlab/apt.log || die "apt-get update: $(grep -m1 -E '^(E|Err)' /run/kmlab/apt.log)"
	for package in $wanted; do
		if ! apt install --yes --no-install-recommends "$package" > /run/kmlab/apt.log; then
			if [ "$package" = "$headers" ]; then die "no headers for kernel $release: $(grep -m1 '^E:' /run/kmlab/apt.log)"; fi
			die "apt-get install $package: $(grep -m1 '^E:' /run/kmlab/apt.log)"
		fi
	done
	apt clean
fi
[ -e "/lib/modules/$release/build/Makefile" ] || die "no headers for kernel $release: $headers is installed but /lib/modules/$release/build is empty"

say "step configuring"
usermod --password '*' root
rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key* /etc/ssh/ssh_host_dsa_key*
cat > /etc/ssh/sshd_config <<'END'
# Made for a lab: one kind of key, and nothing that waits (sshd_config(5)).
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
MaxSessions 64
MaxStartups 64
Subsystem sftp internal-sftp
END
for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer man-db.timer systemd-tmpfiles-clean.timer motd-news.timer serial-getty@ttyS0.service getty@tty1.service \
	systemd-networkd-wait-online.service e2scrub_reap.service systemd-timesyncd.service cron.service; do
	ln --symbolic --force /dev/null "/etc/systemd/system/$unit"
done
# The first serial port is the kernel's alone; people get a login of their own on the virtio console.
mkdir -p /etc/systemd/system/serial-getty@hvc0.service.d
cat > /etc/systemd/system/serial-getty@hvc0.service.d/kmlab.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I $TERM
END
mkdir -p /etc/systemd/system/getty.target.wants
ln --symbolic --force /lib/systemd/system/serial-getty@.service /etc/systemd/system/getty.target.wants/serial-getty@hvc0.service
mkdir -p /etc/systemd/journald.conf.d /etc/default/grub.d
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToConsole=no\n' > /etc/systemd/journald.conf.d/kmlab.conf
# Of all kernels that are installed, this one.
entry=gnulinux-$release-advanced-$(grub-probe --target=fs_uuid /)
cat > /etc/default/grub.d/99-kmlab.cfg <<END
GRUB_DEFAULT=$entry
GRUB_DISABLE_SUBMENU=y
GRUB_TIMEOUT=0
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_TERMINAL="serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_GFXPAYLOAD_LINUX=text
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_RECOVERY=true
GRUB_CMDLINE_LINUX_DEFAULT=
GRUB_CMDLINE_LINUX="@CMDLINE@"
END
say "step update-grub"
update-grub > /run/kmlab/grub.log 2>&1 || die "update-grub: $(tail -n 1 /run/kmlab/grub.log)"
grep -q "'$entry'" /boot/grub/grub.cfg || die "update-grub made no entry for kernel $release"
mkdir -p /var/lib/kmlab
touch /etc/cloud/cloud-init.disabled
say "hostkey $(cat /etc/ssh/ssh_host_ed25519_key.pub)"
say "done $release"
sync
poweroff
