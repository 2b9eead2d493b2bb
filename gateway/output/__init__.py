"""Reads what a model writes: tokens become text, and text reasoning, content and tool calls.

A `ChoiceStream` yields the shown parts of an answer's choices; a `Detokeniser` makes the text
of one choice. An `OutputFormat` defines how one model writes reasoning and calls, as its chat
template shows. `formats` has a parser and a grammar for each format of calls."""
