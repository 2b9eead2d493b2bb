"""Records the output of real models for the simulator."""
