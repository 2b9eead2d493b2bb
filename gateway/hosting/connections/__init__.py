"""Bounds how many connections strangers hold, and for how long without a request."""
