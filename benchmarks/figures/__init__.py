"""Hold one small file for each measured thing; each defines `FIGURES`."""
