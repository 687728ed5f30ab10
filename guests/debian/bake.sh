# Turn a booted image into a base. Runs once as root in the guest. Each line that it prints begins with "kmlab-bake:".
# @CONFIGURE@ is configure.sh. @PACKAGES@, @OPTIONAL@, @HEADERS@ and @CMDLINE@ come from recipe.yaml. @KERNEL@ is the kernel
# to install; its packages are in the seed. If it is empty, the running kernel stays. If @EXACT@ is not empty, no other
# kernel may replace the running one.
set -u
# needrestart(1) would restart services after each call of apt.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C NEEDRESTART_SUSPEND=1
release=@KERNEL@

say() { printf '<5>kmlab-bake: %s\n' "$*" > /dev/kmsg; }
die() { say "error $*"; sync; poweroff --force --force; sleep 60; }
apt() { apt-get --quiet --option DPkg::Lock::Timeout=300 --option Acquire::Retries=3 "$@" > /run/kmlab/apt.log 2>&1; }
why() { grep -m1 -E '^(E:|Err|dpkg: error)' /run/kmlab/apt.log; }
install() { apt install --yes --no-install-recommends "$@" || die "apt-get install $*: $(why)"; }
missing() { for package in "$@"; do dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || echo "$package"; done; }
offered() { for package in "$@"; do if apt-cache show "$package" > /dev/null 2>&1; then echo "$package"; fi; done; }
for_release() { printf '%s' "$1" | sed "s/{release}/$release/g"; }

# cloud-init grows the root file system to the disk. It fails if the file system is full, because growpart writes to /tmp.
free() { df --output=avail --block-size=1M / | tail -n 1 | tr -d ' '; }
grow_root() {
	part=$(findmnt --noheadings --output SOURCE /)
	TMPDIR=/run growpart "/dev/$(lsblk --noheadings --output PKNAME "$part" | head -n 1)" "$(cat "/sys/class/block/${part##*/}/partition")"
	resize2fs "$part"
}

# Print the compilers that the kernel and its build tools were built with: gcc-12, clang-18.
compilers() {
	build=/lib/modules/$release/build
	built=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\(.*\)"$/\1/p' "$build/.config" 2> /dev/null)
	name=$(printf '%s' "${built%% *}" | sed 's/^.*-linux-gnu-//')
	case $name in gcc | clang) major=${built##* }; name=$name-${major%%.*} ;; esac
	printf '%s\n' "$name"
	sed -n 's/^HOSTCC *:*= *\(\S*\)$/\1/p' "$build/Makefile" 2> /dev/null
}

# The headers of Ubuntu's newer kernels (HWE) do not depend on the compiler that they need, which is newer than `gcc`.
install_compilers() {
	for compiler in $(compilers | sed -n '/^\(gcc\|clang\)-[0-9]*$/p' | sort -u); do
		if command -v "$compiler" > /dev/null; then continue; fi
		case $("${compiler%-*}" -dumpversion 2> /dev/null) in "${compiler#*-}" | "${compiler#*-}".*) continue ;; esac
		[ -n "$updated" ] || apt update || die "apt-get update: $(why)"
		updated=yes
		if [ -z "$(offered "$compiler")" ]; then
			say "note kernel $release was built with $compiler, which the archive does not have: builds may fail"
			continue
		fi
		say "step installing $compiler, which kernel $release was built with"
		install "$compiler"
	done
}

# If the archive no longer has the headers of the running kernel, install the newest kernel of its flavour, with its headers.
newer_kernel() {
	[ -z '@EXACT@' ] || die "the archive has no $headers any more, and \`kernel: exact\` wants the image's own kernel $release"
	kernel=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' 'linux-image-*' | sed -n 's/^installed \(linux-image-[a-z].*\)/\1/p' | head -n 1)
	[ -n "$kernel" ] || kernel=linux-image-$(printf '%s' "$release" | sed 's/^[0-9][^-]*-\([0-9]*-\)\{0,1\}//')
	say "step installing a newer kernel: $kernel"
	apt install --yes --no-install-recommends "$kernel" "linux-headers-${kernel#linux-image-}" ||
		die "the archive has no $headers any more, nor a newer kernel: $(why)"
	old=$release
	release=$(ls -v /lib/modules | tail -n 1)
	headers=$(for_release '@HEADERS@')
	[ "$release" != "$old" ] || die "the archive has neither $headers nor a kernel newer than $old"
	say "note the archive has no headers of the image's own kernel $old any more: it restarts into $release"
}

# Ubuntu's sysctls keep such lines away from the console, so raise the console's log level.
echo 8 > /proc/sys/kernel/printk
say "kernel ${release:-$(uname -r)}"
(
@CONFIGURE@
)
systemctl daemon-reload
# These units would hold apt's lock and use the only processor for minutes.
systemctl stop --no-block snapd.service snapd.socket snapd.seeded.service unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer 2> /dev/null

# kmlab can bake the base again, so dpkg need not wait for the disk. Compress the initrd fast, with only what this disk needs.
mkdir -p /etc/dpkg/dpkg.cfg.d
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/kmlab
if [ -d /etc/initramfs-tools/conf.d ]; then printf 'MODULES=dep\nCOMPRESSLEVEL=1\n' > /etc/initramfs-tools/conf.d/kmlab; fi
# Disable update-grub during the installation: it runs once, below.
menu=/etc/kernel/postinst.d/zz-update-grub
chmod a-x "$menu" 2> /dev/null

if [ "$(free)" -lt 1024 ]; then
	say "step growing the root file system, which has only $(free) MiB free"
	grow_root > /run/kmlab/grow.log 2>&1
	[ "$(free)" -ge 512 ] || die "the root file system has only $(free) MiB free and does not grow: $(tail -n 1 /run/kmlab/grow.log)"
fi

if [ -n "$release" ]; then
	say "step installing kernel $release"
	mkdir -p /run/kmlab/seed
	mount -o ro LABEL=cidata /run/kmlab/seed || die "the seed with the packages of kernel $release cannot be mounted"
	set -- /run/kmlab/seed/*.deb
	# If the seed has no packages, the image already has this kernel.
	if [ -e "$1" ]; then
		apt install --yes --no-install-recommends --allow-downgrades "$@" || die "installing kernel $release: $(why)"
	fi
	umount /run/kmlab/seed
else
	release=$(uname -r)
fi
headers=$(for_release '@HEADERS@')
updated=
wanted=$(missing @PACKAGES@ "$headers")
if [ -n "$wanted" ]; then
	say "step reading the package lists"
	apt update || die "apt-get update: $(why)"
	updated=yes
	if [ -n "$(missing "$headers")" ] && [ -z "$(offered "$headers")" ]; then newer_kernel; fi
	wanted=$(missing @PACKAGES@ "$headers" $(offered $(for_release '@OPTIONAL@')))
	say "step installing" $wanted
	install $wanted
fi
install_compilers
[ -z "$updated" ] || apt clean
[ -e "/boot/vmlinuz-$release" ] || die "kernel $release is not in /boot"
[ -e "/lib/modules/$release/build/Makefile" ] || die "no headers for kernel $release: $headers is installed but /lib/modules/$release/build is empty"

mkdir -p /etc/default/grub.d
# GRUB_DEFAULT selects this kernel among all installed ones. GRUB_FORCE_PARTUUID is Ubuntu's: it would boot without an initrd
# first, with panic=-1, which restarts a guest before kmlab can read its panic.
entry=gnulinux-$release-advanced-$(grub-probe --target=fs_uuid /)
cat > /etc/default/grub.d/99-kmlab.cfg <<END
GRUB_DEFAULT=$entry
GRUB_DISABLE_SUBMENU=y
GRUB_TIMEOUT=0
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_TIMEOUT_STYLE=menu
GRUB_TERMINAL="serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_GFXPAYLOAD_LINUX=text
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_RECOVERY=true
GRUB_FORCE_PARTUUID=
GRUB_CMDLINE_LINUX_DEFAULT=
GRUB_CMDLINE_LINUX="@CMDLINE@"
END
say "step update-grub"
chmod a+x "$menu" 2> /dev/null
update-grub > /run/kmlab/grub.log 2>&1 || die "update-grub: $(tail -n 1 /run/kmlab/grub.log)"
grep -q "'$entry'" /boot/grub/grub.cfg || die "update-grub made no entry for kernel $release"
mkdir -p /var/lib/kmlab
touch /etc/cloud/cloud-init.disabled
say "root $(df --output=size --block-size=1 / | tail -n 1 | tr -d ' ')"
say "hostkey $(cat /etc/ssh/ssh_host_ed25519_key.pub)"
say "done $release"
sync
poweroff
