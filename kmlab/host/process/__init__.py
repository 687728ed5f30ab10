"""Programs, sandboxes, locks and terminals on the host."""
