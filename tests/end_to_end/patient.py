"""Runs an edge whose link is patient: a busy host is no lost verifier.

Tests that lose a verifier start the product's own edge, see fleet.
"""

from __future__ import annotations

from edge_agent.__main__ import app
from edge_agent.link import failover_policy, session

if __name__ == "__main__":
    session.SILENCE_S *= 10  # type: ignore[misc]
    failover_policy.OPEN_TIMEOUT_S *= 10  # type: ignore[misc]
    app(prog_name="picospec edge")
