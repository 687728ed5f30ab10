# Turn the unpacked system $1 into an ext4 file system in the open file $2. Runs inside mmdebstrap's namespace.
# The recipe in guests/ provides configure.sh and the kernel's command line; the user's key decides who can log in with ssh.
# So a guest that needs nothing more takes no first boot.
set -eu
root=$1
image=$2

cat > "$root/etc/fstab" <<'END'
LABEL=kmlab-root / ext4 rw,noatime 0 1
LABEL=KMLAB-ESP /boot/efi vfat umask=0077,noauto 0 0
END
echo lab > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 lab\n' > "$root/etc/hosts"
: > "$root/etc/machine-id"
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
cat > "$root/etc/systemd/network/80-dhcp.network" <<'END'
[Match]
Name=en* eth*
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
END
chroot "$root" systemctl --quiet enable systemd-networkd
mkdir -p "$root/boot/efi" "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" <<'END'
set timeout=0
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set gfxpayload=text
linux /vmlinuz root=LABEL=kmlab-root ro @CMDLINE@
initrd /initrd.img
boot
END
cat > "$root/configure.sh" <<'CONFIGURE'
@CONFIGURE@
CONFIGURE
chroot "$root" sh /configure.sh
rm "$root/configure.sh"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/etc/ssh/ssh_host_* "$root"/var/log/*.log
chroot "$root" ssh-keygen -q -t ed25519 -N '' -C lab -f /etc/ssh/ssh_host_ed25519_key
mkdir -p -m 700 "$root/root/.ssh"
echo '@AUTHORIZED_KEY@' > "$root/root/.ssh/authorized_keys"
chmod 600 "$root/root/.ssh/authorized_keys"
# systemd need not update anything in the first boot: the packages were unpacked just now (systemd-update-done.service).
touch "$root/etc/.updated" "$root/var/.updated"
mkdir -p "$root/var/lib/kmlab"
# If there are several kernels, this one boots.
kernel=$(readlink "$root/vmlinuz")
printf 'release=%s\nhost_key=%s\n' "${kernel##*/vmlinuz-}" "$(cut -d ' ' -f 1,2 "$root/etc/ssh/ssh_host_ed25519_key.pub")" \
	> "$root/var/lib/kmlab/facts"

# A bind mount that is not recursive shows the tree without the /proc, /sys and /dev mounted into it.
mount --bind "$root" "$root/mnt"
mke2fs -q -F -t ext4 -L kmlab-root -E root_owner=0:0 -d "$root/mnt" "$image"
umount "$root/mnt"
