"""What a module says of itself, and why it does not load or unload."""
