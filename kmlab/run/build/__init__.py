"""Build a module: run make in the guest or in a sandbox, while the guest is being restored."""
