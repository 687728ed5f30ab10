"""The ways into a guest: the agent's channel, ssh, the serial port."""
