"""Describe domains, seeds and firmware as values, without I/O."""
