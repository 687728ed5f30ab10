"""Run one module in one guest, from its folder to a verdict; run many; run again on each save."""
