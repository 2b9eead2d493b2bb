"""Loads a real verifier with many sessions at once, beside what the simulator predicts."""
