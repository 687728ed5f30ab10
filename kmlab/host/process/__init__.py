"""Run programs and sandboxes, take locks, watch folders and join terminals on the host."""
