"""The protocol of the link: messages, their bytes and errors."""
