"""Simulates discrete events: the product's own machines and policies run on a virtual clock.

Read it in this order: clock (events, the link), source (what the models generate), arms (the
systems compared), edge and verifier (the two hosts), world (runs).
"""
