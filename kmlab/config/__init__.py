"""Read what the user asks for: lab.yaml, the catalogue of images, and the options of a run."""
