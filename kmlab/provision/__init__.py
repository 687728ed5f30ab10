"""Make running guests, and everything in the cache that they need."""
