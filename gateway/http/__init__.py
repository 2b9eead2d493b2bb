"""Handles HTTP for every route: the body of a request, responses, and the connection."""
