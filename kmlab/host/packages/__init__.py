"""Read apt's archive, make .deb files, and build images from packages."""
