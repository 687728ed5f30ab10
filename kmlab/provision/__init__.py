"""From a plan to a running guest, and what lies in the cache."""
