"""The reports in a kernel's log: found, parsed, told apart, with the function that is to blame."""
