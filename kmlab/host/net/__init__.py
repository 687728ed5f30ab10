"""Download over HTTPS, and verify the signatures of publishers."""
