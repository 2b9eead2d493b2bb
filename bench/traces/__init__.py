"""What real models say, kept for the simulator."""
