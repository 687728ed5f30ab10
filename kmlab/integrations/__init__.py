"""Serve other programs that use a lab: pytest and agents."""
