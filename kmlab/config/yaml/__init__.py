"""Turn YAML text into checked values, with the line of each for error messages."""
