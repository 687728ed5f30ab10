#!/bin/sh
# enter.sh ROOT CMD...: as root, run a command in a root file system. pivot_root(2) allows user namespaces in it; chroot(2)
# does not (user_namespaces(7)).
set -eu
exec unshare --mount --propagation private sh -euc '
root=$1
shift
mount --bind "$root" "$root"
mkdir -p "$root/host"
for place in dev sys proc; do mount --rbind "/$place" "$root/$place"; done
cd "$root"
pivot_root . host
umount -l /host
cd /
exec "$@"' sh "$@"
