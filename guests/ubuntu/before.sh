# Start sshd without a socket. Runs before bake.sh. Since Ubuntu 22.10 a socket starts sshd, and ssh.service requires the
# socket. configure.sh masks the socket, so without these lines sshd could not start either.
systemctl --quiet disable ssh.socket 2> /dev/null
rm -rf /etc/systemd/system/ssh.service.requires /etc/systemd/system/ssh.service.d/00-socket.conf

