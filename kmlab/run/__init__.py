"""One module through one guest, from its folder to a verdict; many of them; on each save."""
