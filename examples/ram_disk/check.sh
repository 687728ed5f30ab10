#!/bin/sh
# Makes a file system on the disk, writes a file, and reads it again from the disk itself.
set -eu

place=$(mktemp -d)
trap 'umount "$place" 2> /dev/null || true; rmdir "$place"' EXIT

mkfs.ext4 -q -F /dev/ram_disk
mount /dev/ram_disk "$place"
head -c 1000000 /dev/urandom > "$place/file"
before=$(sha256sum < "$place/file")
umount "$place"
mount /dev/ram_disk "$place"
test "$before" = "$(sha256sum < "$place/file")"
