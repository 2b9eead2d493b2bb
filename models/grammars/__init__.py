"""Grammars that the text of an answer must keep to, and where an answer stands in its grammar."""
