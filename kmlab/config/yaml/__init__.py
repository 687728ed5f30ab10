"""YAML text to checked values, with the line of each for error messages."""
