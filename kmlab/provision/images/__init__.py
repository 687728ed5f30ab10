"""Download or build images and kernels, and verify them."""
