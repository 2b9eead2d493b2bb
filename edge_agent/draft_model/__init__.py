"""The draft model and the thread that it runs in."""
