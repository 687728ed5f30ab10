"""kmlab: a virtual lab for Linux kernel modules."""

__version__ = "0.1.0"
