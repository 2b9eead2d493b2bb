"""`picospec chat` and `run`: they ask a service, and show its answers in the terminal."""
