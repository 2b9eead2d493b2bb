"""A discrete-event simulator: the product's own machines and policies on a virtual clock.

Read it in this order: clock (events, the link), source (what the models generate), arms (the
systems compared), edge and verifier (the two hosts), world (runs).
"""
