"""Has a parser and a grammar for each format in which models write tool calls."""
