"""What a guest is made of, decided before anything is made, and how things of the cache are made."""
