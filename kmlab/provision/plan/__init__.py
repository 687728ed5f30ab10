"""Plan a guest before anything is made, and make artifacts of the cache."""
