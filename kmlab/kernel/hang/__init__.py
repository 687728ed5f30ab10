"""Hangs: what every task of a kernel waits for, and the order in which its watchdogs report."""
