# Runs inside mmdebstrap's namespace: makes of the unpacked system $1 the file systems of a cloud image of Ubuntu 24.04's
# shape, in the open file $2: /boot at 70 MiB, the root at 200 MiB.
set -eu
root=$1
image=$2

cat > "$root/etc/fstab" <<'END'
LABEL=cloudimg-rootfs / ext4 discard,commit=30,errors=remount-ro 0 1
LABEL=BOOT /boot ext4 defaults 0 2
LABEL=UEFI /boot/efi vfat umask=0077 0 1
END
echo ubuntu > "$root/etc/hostname"
printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
: > "$root/etc/machine-id"
# As in Canonical's images: netplan, a user "ubuntu", few lines on the console, GRUB settings that must be overruled.
cat > "$root/etc/cloud/cloud.cfg.d/90_shape.cfg" <<'END'
datasource_list: [NoCloud, None]
system_info:
  default_user: {name: ubuntu, lock_passwd: true, gecos: Ubuntu, groups: [adm, sudo], sudo: ["ALL=(ALL) NOPASSWD:ALL"], shell: /bin/bash}
  network: {renderers: [netplan]}
END
mkdir -p "$root/etc/default/grub.d" "$root/boot/grub" "$root/boot/efi"
echo 'kernel.printk = 4 4 1 7' > "$root/etc/sysctl.d/10-console-messages.conf"
echo 'GRUB_CMDLINE_LINUX_DEFAULT="console=tty1 console=ttyS0"' > "$root/etc/default/grub.d/50-cloudimg-settings.cfg"
echo 'GRUB_FORCE_PARTUUID=00000000-0000-0000-0000-000000000000' > "$root/etc/default/grub.d/40-force-partuuid.cfg"
chroot "$root" systemctl --quiet enable systemd-networkd systemd-resolved
ln --symbolic --force ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# sshd behind a socket that its service requires.
mkdir -p "$root/etc/systemd/system/ssh.service.requires"
ln --symbolic /lib/systemd/system/ssh.socket "$root/etc/systemd/system/ssh.service.requires/ssh.socket"
kernel=$(basename "$(ls "$root"/boot/vmlinuz-*)")
cat > "$root/boot/grub/grub.cfg" <<END
set timeout=0
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
linux /$kernel root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0
initrd /initrd.img-${kernel#vmlinuz-}
boot
END
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/etc/ssh/ssh_host_* "$root"/var/log/*.log

mkdir "$root/mnt/boot"
mv "$root"/boot/* "$root/mnt/boot/"
mke2fs -q -F -t ext4 -L BOOT -E root_owner=0:0,offset=$((70 << 20)) -d "$root/mnt/boot" "$image" 120M
rm -rf "$root/mnt/boot"
mkdir -p "$root/boot/efi"
# A bind mount that is not recursive shows the tree without the /proc, /sys and /dev mounted into it.
mount --bind "$root" "$root/mnt"
mke2fs -q -F -t ext4 -L cloudimg-rootfs -E root_owner=0:0,offset=$((200 << 20)) -d "$root/mnt" "$image" 1700M
umount "$root/mnt"
