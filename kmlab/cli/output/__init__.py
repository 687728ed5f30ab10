"""Write to the terminal: verdicts, lists, progress, and the screen of `kmlab watch`."""
