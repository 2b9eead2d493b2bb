"""Manages who uses a service: keys, the tenants that hold them, and the tenants' limits."""
