"""How kbuild is called, what its messages mean, and which kernels an archive has."""
