"""Reads what a model writes: tokens become text, and text reasoning, content and tool calls.

A `ChoiceStream` is what the choices of an answer show; a `Detokeniser` makes the text of one. A
`Style` says how one model writes reasoning and calls, which its chat template tells. `formats`
has a parser for each way of writing calls, and the grammar that makes a model write so.
"""
