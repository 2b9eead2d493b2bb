"""The embedded target: llama.cpp in this process, on one thread of its own.

Read it in this order: settings, judging (a pass's logits to judgements), engine (what runs in
the thread), slot (one session), scheduler (which sessions join a pass), target.
"""
