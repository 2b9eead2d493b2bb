"""Shows in one command what a GPU host must do for PicoSpec, and how fast it does it."""
