"""Checks the way to the verifier, as an edge with these settings would use it."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from picospec.cli.doctor.drafting import check_drafting
from picospec.cli.doctor.finding import Finding, milliseconds
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import ApiError, EngineFault
from picospec.models.store import Store
from picospec.speculation.messages import PROTOCOL_VERSION, ModelFacts

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
ONE_VERSION: Final = "install one version of PicoSpec at both ends"
ROUND_TRIPS: Final = 5
AGENT_TOKENS: Final = 32_768


async def check_verifier(settings: EdgeSettings, store: Store, uplink: Uplink) -> list[Finding]:
    """Check the verifier and the drafting. Checks that depend on a failed one are left out.

    settings: they name this verifier alone.
    """
    facts, findings = await _reach(uplink)
    if facts is not None:
        findings += await check_drafting(settings, store, uplink, facts)
    return findings


async def _reach(uplink: Uplink) -> tuple[ModelFacts | None, list[Finding]]:
    """Return the target's facts, if the verifier can be reached, and the findings so far."""
    try:
        facts = await uplink.facts()
        for _ in range(ROUND_TRIPS):
            await uplink.check()
    except ApiError as error:
        return None, not_reached(error, uplink.url)
    reached = (
        f"{uplink.url} serves {facts.model}; the round trip takes {milliseconds(uplink.rtt_s)}"
    )
    return facts, [
        Finding("verifier", True, reached),
        Finding("certificate", True, encryption(uplink.url)),
        Finding("key", True, "accepted"),
        check_protocol(facts),
        check_context(facts),
    ]


def encryption(url: str) -> str:
    """Return who can read the traffic to a verifier that answers, in words."""
    if url.startswith("https:"):
        return "accepted"
    if urlsplit(url).hostname in LOOPBACK:
        return "none needed on this machine"
    return "none: what crosses the link can be read"


def check_protocol(facts: ModelFacts) -> Finding:
    """Check that both ends speak one version of the protocol."""
    if facts.is_compatible:
        return Finding("protocol", True, f"version {PROTOCOL_VERSION}")
    found = f"the verifier speaks version {facts.protocol}, this edge {PROTOCOL_VERSION}"
    return Finding("protocol", False, f"{found}: answers have no drafts", ONE_VERSION)


def check_context(facts: ModelFacts) -> Finding:
    """Warn about a context that is too short for coding agents, whose first prompts have up to
    18,000 tokens."""
    remedy = (
        "agents need 32,768: llama.context_tokens with fewer llama.slots at the verifier, or"
        " max_model_len of vLLM, if the model takes them"
    )
    short = facts.context_tokens < AGENT_TOKENS
    return Finding("context", True, f"{facts.context_tokens} tokens", remedy, warns=short)


def not_reached(error: ApiError, url: str) -> list[Finding]:
    """Return findings that show how far the edge came, and what stopped it."""
    reached = Finding("verifier", True, f"{url} answers")
    if error.error_code == "verifier_unauthorized":
        remedy = "set PICOSPEC_VERIFIER_KEY to one of the keys that the verifier accepts"
        return [reached, Finding("key", False, error.message, remedy)]
    if "certificate" in error.message:
        remedy = "verifier_ca must name the PEM file of the authority that signed it"
        return [reached, Finding("certificate", False, error.message, remedy)]
    if urlsplit(url).hostname in LOOPBACK and "refused" in error.message:
        return [Finding("verifier", True, "not running here; picospec up starts it")]
    remedy = "check the address, the firewall, and the verifier's own log"
    if isinstance(error, EngineFault):
        remedy = "is this the address of another service?"
    return [Finding("verifier", False, error.message, remedy)]
