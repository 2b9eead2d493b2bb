"""What crosses the link: the messages, their bytes, and what may go wrong."""
