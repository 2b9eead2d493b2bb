"""What the papers compute with a pencil; the simulator must agree where their assumptions hold.

alpha     probability that a draft is right, given that those before it are
gamma     drafts in a round
draft_s   time of one draft; pass_s of one target pass, at any number of rows
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
    """Return tokens per second of PicoSpec as published (arXiv:2603.19133, section 3).

    A round that stands commits gamma tokens and hides the drafting of the next; one that does
    not commits its right beginning and the target's token, and drafts anew.
    """
    stands = alpha**gamma
    drafting_s, away_s = gamma * draft_s, rtt_s + pass_s
    seconds = stands * max(drafting_s, away_s) + (1 - stands) * (drafting_s + away_s)
    return round_tokens(alpha, gamma - 1) / seconds


def critical_rtt_s(alpha: float, gamma: int, *, draft_s: float, pass_s: float) -> float:
    """Return the round trip above which `sync` is slower than `cloud` (arXiv:2606.25091)."""
    return (round_tokens(alpha, gamma) - 1) * pass_s - gamma * draft_s
