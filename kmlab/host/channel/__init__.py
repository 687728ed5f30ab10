"""Reach a guest: through the agent's channel, ssh, or the serial port."""
