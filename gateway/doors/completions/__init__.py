"""Serves POST /v1/completions."""
