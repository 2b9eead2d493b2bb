"""The embedded target runs llama.cpp in this process, on a thread of its own.

Read the modules in this order: settings, judging (from a pass's logits to judgements), engine
(the code in the thread), slot (one session), scheduler (the sessions of a pass), target.
"""
