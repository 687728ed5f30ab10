"""Steps that ask the kernel what it has noticed, before and after the unload."""
