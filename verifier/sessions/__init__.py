"""Sessions between the routes and the target: their tasks, timeouts, logs and readers."""
