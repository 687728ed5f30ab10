"""One small file for each thing that is measured; each has `FIGURES`."""
