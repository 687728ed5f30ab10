"""Build debug kernels from the distribution's signed source packages."""
