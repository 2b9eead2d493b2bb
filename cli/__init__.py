"""The picospec command: it starts, watches and talks to the services."""
