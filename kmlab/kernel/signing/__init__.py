"""Module signatures: made, read, and checked against the keys of a guest."""
