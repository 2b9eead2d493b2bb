"""A session connects the routes to the target: its task, timeouts and stream are here."""
