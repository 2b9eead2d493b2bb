"""The picospec command starts the services, watches them and talks to them."""
