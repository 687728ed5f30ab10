"""Know the kernel's own detectors of quiet bugs: how they are switched on, and what they say when they are asked."""
