"""Real guests with debug kernels: `make test-debug`."""
