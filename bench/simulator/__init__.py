"""A discrete-event simulator: the product's own session machines and rules on a virtual clock.

Read it in this order: clock (events, the link), source (what the models say), arms (who decides
what), edge and verifier (the two hosts), world (runs, and what they cost).

Nothing of a rule is copied here: sessions are speculation.drafting and speculation.verifying,
decisions are speculation.pacing and speculation.budget, bytes are those of speculation.wire,
and the link is bench.path. Only time is made up.
"""
