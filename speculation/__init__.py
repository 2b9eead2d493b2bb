"""The core that both ends must agree on. It has no I/O, clock or randomness of its own.

both ends      messages, wire, untrusted; noise, distributions, logits; judge, coupled,
               separate, judges
without steps  ngrams, lookup, prediction, learning: draft tokens that cost no draft step
the edge       drafting, draft_machine: one answer
the verifier   chain, verify_session, pass_policy, latency, verify_machine: all its sessions
"""
