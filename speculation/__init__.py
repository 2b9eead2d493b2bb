"""What both ends must agree on, without I/O, clock or randomness of its own.

protocol    messages, their bytes, errors
sampling    distributions, shared noise, judging, draft tokens
proposing   draft tokens from what was written before
drafting    the edge's end of one answer
verifying   the verifier's end of all its sessions
"""
