"""Images and kernels: downloaded or built, and verified."""
