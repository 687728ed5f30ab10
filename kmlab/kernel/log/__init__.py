"""A kernel's log as records, from any text, and its taint flags."""
