"""Try kmlab on the user's own machine, and report what was seen without personal data."""
