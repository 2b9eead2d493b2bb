"""Sessions between the routes and the target: their tasks, timeouts and streams."""
