"""The papers' formulas, with which the simulator must agree where their assumptions hold.

alpha     probability that a draft token is accepted, given that those before it are
gamma     draft tokens in a round
draft_s   time of one draft step
pass_s    time of one target pass, at any number of rows
"""

from __future__ import annotations


def round_tokens(alpha: float, gamma: int) -> float:
    """Return the tokens a synchronous round commits: Leviathan et al. 2023, equation 1."""
    return float(gamma + 1) if alpha == 1.0 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def sync_rate(
    alpha: float, gamma: int, *, draft_s: float, rtt_s: float, pass_s: float
) -> float:
    """Return tokens per second of speculation that stops and waits."""
    return round_tokens(alpha, gamma) / (gamma * draft_s + rtt_s + pass_s)


def paper_rate(
    alpha: float, gamma: int, *, draft_s: float, rtt_s: float, pass_s: float
) -> float:
    """Return tokens per second of PicoSpec as published (arXiv:2603.19133, section 3), with the
    bonus token that `picospec.bench.round_policy` gives it.

    A round that is accepted, and whose bonus token was drafted too, hides the drafting of the
    next one. Any other breaks the chain, and the edge drafts anew.
    """
    hidden = alpha ** (gamma + 1)
    away_s = rtt_s + pass_s
    hit_s, miss_s = max((gamma + 1) * draft_s, away_s), gamma * draft_s + away_s
    return round_tokens(alpha, gamma) / (hidden * hit_s + (1 - hidden) * miss_s)


def acespec_rate(
    alpha: float, hits: float, gamma: int, *, draft_s: float, rtt_s: float, pass_s: float
) -> float:
    """Return tokens per second of rounds with a cache of branches (arXiv:2609.02514), one at
    each depth, where branches cost a step nothing.

    hits: probability that a recovered token begins a branch. Then the next round is there, as
    far as the branch came while the last one was away; the rest of it is drafted.
    """
    away_s = rtt_s + pass_s
    accepted = alpha ** (gamma + 1)
    accepted_s = max((gamma + 1) * draft_s, away_s)
    hit_s = away_s + max(0, gamma - int(away_s / draft_s + 1e-9)) * draft_s
    miss_s = away_s + gamma * draft_s
    broken_s = hits * hit_s + (1 - hits) * miss_s
    return round_tokens(alpha, gamma) / (accepted * accepted_s + (1 - accepted) * broken_s)


def critical_rtt_s(alpha: float, gamma: int, *, draft_s: float, pass_s: float) -> float:
    """Return the round trip above which `sync` is slower than `cloud` (arXiv:2606.25091)."""
    return (round_tokens(alpha, gamma) - 1) * pass_s - gamma * draft_s
