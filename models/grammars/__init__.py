"""Grammars that the text of an answer must keep to, and where answers stand in them."""
