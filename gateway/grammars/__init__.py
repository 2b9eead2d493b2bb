"""Reads the constraints that requests put on an answer, and writes them as Lark grammars."""
