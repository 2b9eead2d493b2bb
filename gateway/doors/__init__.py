"""The doors by which answers are asked for, a folder each, and what they share.

A door reads a body into a `GenerationRequest`, and its `Answer` writes what an engine makes of
it, and errors, in the door's own shape. Everything between the two is one path for all doors.
"""
