"""Admits each request, and accounts for it."""
