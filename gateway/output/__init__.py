"""Reads what a model writes: its reasoning, the content of its answer, and its tool calls.

A `Style` says how one model writes them, which its chat template tells. `formats` has a parser
for each way of writing calls, and the grammar that makes a model write so.
"""
