"""The core that both ends must agree on. It has no I/O, clock or randomness of its own.

protocol    messages, their bytes, errors sampling    distributions, shared noise, draft tokens
judges      the judges, each with a half for either end proposing   draft tokens from earlier
text drafting    the edge's end of one answer verifying   the verifier's end of all its sessions
"""
