"""How fast both ends of a host are, for the simulator."""
