"""Admits each request, and keeps its account."""
