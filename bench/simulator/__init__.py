"""A discrete-event simulator: the product's own session machines and rules on a virtual clock.

Read it in this order: clock (events, the link), source (what the models say), arms (who decides
what), edge and verifier (the two hosts), world (runs, and what they cost).

Nothing of a rule is copied here: sessions are speculation.drafting.session and speculation.verifying.session,
decisions are speculation.drafting.policy and speculation.verifying.row_allocation, bytes are those of speculation.protocol.wire,
and the link is bench.link.path. Only time is made up.
"""
