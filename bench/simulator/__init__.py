"""Simulates discrete events: the product's own machines and policies run on a virtual clock.

Read it in this order: hosts (the clock, the link), source (what the models generate), ends (the
edge and the verifier), rivals (systems of others), world (the systems compared, runs, and
comparisons).
"""
