"""Compiles the grammars that constrain answers, and tracks where each answer stands in them."""
