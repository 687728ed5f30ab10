"""Run domains with libvirt and QEMU, choose the accelerator, measure the host, and check it (`kmlab doctor`)."""
