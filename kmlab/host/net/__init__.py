"""Downloads over HTTPS, and the signatures of publishers."""
