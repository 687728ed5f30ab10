# Runs inside mmdebstrap's namespace: turns the unpacked system $1 into an ext4 file system in the open file $2.
# What makes a guest a lab's guest is not here but in guests/: this is the plain system, as a cloud image has it.
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
linux /vmlinuz root=LABEL=kmlab-root ro console=ttyS0,115200 printk.devkmsg=on
initrd /initrd.img
boot
END
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/etc/ssh/ssh_host_* "$root"/var/log/*.log

# A bind mount that is not recursive shows the tree without the /proc, /sys and /dev mounted into it.
mount --bind "$root" "$root/mnt"
mke2fs -q -F -t ext4 -L kmlab-root -E root_owner=0:0 -d "$root/mnt" "$image"
umount "$root/mnt"
