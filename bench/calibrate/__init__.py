"""Measures the speed of both ends on a host, for the simulator."""
