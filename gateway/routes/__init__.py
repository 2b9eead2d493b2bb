"""Answers the routes that generate nothing: tokens, models, states, documents and the page."""
