"""Domains, seeds and firmware as values: no I/O."""
