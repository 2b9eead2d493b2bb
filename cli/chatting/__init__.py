"""`picospec chat` and `run` ask a service, and show its answers in the terminal."""
