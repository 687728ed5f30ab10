"""Bases and checkpoints, and the toolchain of a base."""
