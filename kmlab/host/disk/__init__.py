"""Disk images, file systems, UEFI variable stores and memory dumps."""
