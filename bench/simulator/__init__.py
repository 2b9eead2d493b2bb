"""Simulates discrete events: the product's own machines and policies run on a virtual clock.

Read it in this order: clock (with the link), hosts (speeds), source (what the models generate),
edge and verifier (the two ends), world (the systems compared, and runs), comparison. Systems of
others are in rivals and acespec.
"""
