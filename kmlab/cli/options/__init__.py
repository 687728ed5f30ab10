"""The options of commands, and what they mean for a run."""
