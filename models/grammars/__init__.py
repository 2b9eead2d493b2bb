"""Grammars that an answer must keep to, and the state of an answer in its grammar."""
