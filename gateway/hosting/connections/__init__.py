"""How many connections strangers may hold, and for how long without a request."""
