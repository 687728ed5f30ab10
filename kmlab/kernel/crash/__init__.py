"""What the reports in a kernel's log have in common: their first lines, stacks, whose fault it is, source lines."""
