"""Divide the runs of one command among machines, and put their results together again."""
