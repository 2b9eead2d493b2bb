"""Who uses a service: keys, the tenants who hold them, and what these may use."""
