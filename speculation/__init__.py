"""What both ends of the link must agree on: messages, noise, laws, judging, sessions, pacing.

Read it in this order: messages (what is said), codec and wire (how it is written), noise (the
chance both ends share), laws (distributions over tokens), judging (what becomes of a draft),
honesty (what no edge sends), drafting and verifying (the two halves of a session; branches and
chain: what they hold), pacing (when to draft and send), lookup (drafting without a model),
budget (how much to verify), arrivals (when drafts are due), passes (when to verify).

Nothing here does I/O, reads a clock or draws a random number: all of these are arguments.
"""
