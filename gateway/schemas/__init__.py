"""Defines the parts of request bodies, and lists the fields that other servers know."""
