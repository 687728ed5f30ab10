"""Distribution packages: apt's archive, .deb files, images from packages."""
