"""Loads a real verifier with many sessions at once, and compares it with the simulator."""
