"""Building a module: its folder, make in the guest or in a sandbox, and a build that goes on meanwhile."""
