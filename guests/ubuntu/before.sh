# Before bake.sh. Since Ubuntu 22.10 a socket starts sshd, and ssh.service requires it: once the socket is masked, as all
# that waits is, it would take sshd with it.
systemctl --quiet disable ssh.socket 2> /dev/null
rm -rf /etc/systemd/system/ssh.service.requires /etc/systemd/system/ssh.service.d/00-socket.conf

