"""Signing files in place, and one module signed in every way."""
