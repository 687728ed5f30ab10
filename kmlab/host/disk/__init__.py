"""Make and read disk images, file systems, UEFI variable stores and memory dumps."""
