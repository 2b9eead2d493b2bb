"""The embedded target runs llama.cpp in this process, on a thread of its own.

`scheduler` is what that thread does, from a session's slot to the passes over all; `target` is
what the service sees of it.
"""
