"""What a guest's console, its memory and a saved log tell about a failure."""
