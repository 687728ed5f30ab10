"""libvirt and QEMU: domains, the accelerator, what the host can hold, `kmlab doctor`."""
