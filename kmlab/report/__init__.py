"""Find out what the results of a command say together: findings, a table of kernels, a timeline, JSON Schemas."""
