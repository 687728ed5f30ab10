"""Make bases, checkpoints, and the toolchain of a base."""
