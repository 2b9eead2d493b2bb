"""File descriptors: as many as the system allows, and some of them never for clients.

A connection takes one. So do the link to a verifier, a model's files and the start of a
process; without them running answers would be lost.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

MOST: Final = 65_536
"""The limit that is asked for. Shells and systemd give 1,024 and allow far more. With more than
this a process takes long to start others, because it closes all descriptors for them."""

RESERVED: Final = 512
"""Descriptors that clients never get. An edge needs about 40, and three for each trial of a
grammar; a verifier about 30, and vLLM's service about 200."""


def raise_limit() -> int:
    """Raise this process's limit, which its children inherit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    with suppress(OSError, ValueError):  # macOS has another limit besides
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return MOST if soft == resource.RLIM_INFINITY else soft


def for_clients(limit: int) -> int:
    """Return how many connections there may be: all but RESERVED, or half of a low limit."""
    return max(limit - RESERVED, limit // 2)
