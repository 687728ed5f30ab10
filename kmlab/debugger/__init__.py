"""Debug a guest's kernel and a module in it, from outside: gdb on QEMU's stub."""
