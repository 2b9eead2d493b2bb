"""The ways in which models write tool calls: a parser and a grammar for each."""
