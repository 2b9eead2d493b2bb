"""A discrete-event simulator: the product's own session machines and rules on a virtual clock.

Read it in this order: clock (events, the link), source (what the models generate), arms (the
systems compared), edge and verifier (the two hosts), world (runs, and what they cost).

No rule is copied here: sessions, policies and messages are those of `speculation`, and the link
is bench.link.path. Only time is made up.
"""
