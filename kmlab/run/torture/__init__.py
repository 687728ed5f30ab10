"""Torture a module: load and unload it under conditions that an ordinary run does not meet."""
