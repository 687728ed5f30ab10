# Turn a system into a lab's guest, with any kernel and any packages. root.sh runs this in an image while it is unpacked;
# bake.sh runs it in a publisher's image in its first boot.

# Not every distribution has all of these units. Masking a missing unit does no harm.
for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer man-db.timer systemd-tmpfiles-clean.timer motd-news.timer serial-getty@ttyS0.service getty@tty1.service \
	systemd-networkd-wait-online.service e2scrub_reap.service systemd-timesyncd.service cron.service \
	snapd.service snapd.socket snapd.seeded.service snapd.apparmor.service snapd.autoimport.service snapd.core-fixup.service \
	snapd.recovery-chooser-trigger.service snapd.snap-repair.timer snapd.system-shutdown.service \
	apport.service apport-autoreport.timer ua-timer.timer ubuntu-advantage.service esm-cache.service update-notifier-download.timer \
	update-notifier-motd.timer fwupd-refresh.timer logrotate.timer sysstat.service sysstat-collect.timer sysstat-summary.timer \
	multipathd.service multipathd.socket ModemManager.service udisks2.service packagekit.service lxd-installer.socket \
	pollinate.service secureboot-db.service open-iscsi.service iscsid.socket open-vm-tools.service vgauth.service \
	networkd-dispatcher.service thermald.service irqbalance.service rsyslog.service syslog.socket plymouth-quit-wait.service \
	grub-common.service grub-initrd-fallback.service keyboard-setup.service console-setup.service ssh.socket chrony.service; do
	ln --symbolic --force /dev/null "/etc/systemd/system/$unit"
done

# No user has a password, and no account is locked: without PAM, sshd treats "!" as a locked account even with a key.
for home in /root /home/*; do usermod --password '*' "${home##*/}" 2> /dev/null; done
rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key* /etc/ssh/ssh_host_dsa_key*
cat > /etc/ssh/sshd_config <<'END'
# For a lab: one type of key, and no setting that makes a login wait (sshd_config(5)).
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
# Do what `systemctl enable` would do: it would first run System V scripts for eight seconds.
mkdir -p /etc/systemd/system/multi-user.target.wants
ln --symbolic --force /lib/systemd/system/ssh.service /etc/systemd/system/multi-user.target.wants/ssh.service
# Only the kernel uses the first serial port. People log in on the virtio console.
mkdir -p /etc/systemd/system/serial-getty@hvc0.service.d
cat > /etc/systemd/system/serial-getty@hvc0.service.d/kmlab.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I $TERM
END
mkdir -p /etc/systemd/system/getty.target.wants
ln --symbolic --force /lib/systemd/system/serial-getty@.service /etc/systemd/system/getty.target.wants/serial-getty@hvc0.service
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToConsole=no\n' > /etc/systemd/journald.conf.d/kmlab.conf
