"""Hold what a step gets and what it gives: the run's context, the results so far, and commands in the guest."""
