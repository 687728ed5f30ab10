"""Diagnose a failure from a guest's console, its memory, or a saved log."""
