"""Checks the way to the verifier, as an edge with these settings would use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from edge_agent.app import open_verifiers
from edge_agent.link.verifier import NO_PICOSPEC, START_PLUGIN, Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, EngineFault
from local_models.store import Store, open_store
from picospec.draft_checks import check_drafting
from picospec.findings import Finding, milliseconds
from speculation.model_facts import PROTOCOL_VERSION, ModelFacts

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
ONE_VERSION: Final = "install one version of PicoSpec at both ends"


async def check_edge(settings: EdgeSettings, *, named: bool = True) -> list[Finding]:
    """Check each verifier of an edge with these settings, and the drafting for it. named: see
    `not_reached`."""
    store, findings = open_store(os.environ), list[Finding]()
    for alone in each_alone(settings):
        (verifier,) = open_verifiers(alone, EdgeMetrics(CollectorRegistry())).all
        findings += await check_verifier(alone, store, verifier, named=named)
    return findings


def each_alone(settings: EdgeSettings) -> Iterator[EdgeSettings]:
    """Yield the settings of an edge for each of its verifiers, which they name alone."""
    models = tuple(each.model_copy(update={"verifier_urls": ()}) for each in settings.models)
    for address in settings.verifiers:
        yield settings.model_copy(update={"verifier_url": address, "models": models})
    for model in settings.models:
        for address in model.verifier_urls:
            only = (model.model_copy(update={"verifier_urls": (address,)}),)
            alone = {"verifier_url": None, "verifier_urls": (), "models": only}
            yield settings.model_copy(update=alone)


async def check_verifier(
    settings: EdgeSettings, store: Store, verifier: Verifier, *, named: bool = True
) -> list[Finding]:
    """Check the verifier and the drafting. Checks that depend on a failed one are left out.

    settings: they name this verifier alone. named: see `not_reached`.
    """
    facts, findings = await _reach(verifier, named=named)
    if facts is not None:
        findings += await check_drafting(settings, store, verifier, facts)
    return findings


async def _reach(verifier: Verifier, *, named: bool) -> tuple[ModelFacts | None, list[Finding]]:
    """Return the target's facts, if the verifier can be reached, and the findings so far."""
    try:
        facts = await verifier.facts()
        for _ in range(5):
            await verifier.check()
    except ApiError as error:
        return None, not_reached(error, verifier.url, named=named)
    rtt = milliseconds(verifier.rtt_s)
    reached = f"{verifier.url} serves {facts.model}; the round trip takes {rtt}"
    return facts, [
        Finding("verifier", True, reached),
        Finding("certificate", True, encryption(verifier.url)),
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
    finding = f"the verifier speaks version {facts.protocol}, this edge {PROTOCOL_VERSION}"
    return Finding("protocol", False, f"{finding}: answers have no drafts", ONE_VERSION)


def check_context(facts: ModelFacts) -> Finding:
    """Warn about a context that is too short for coding agents, whose first prompts have up to
    18,000 tokens."""
    remedy = (
        "agents need 32,768: llama.context_tokens with fewer llama.slots at the verifier, or"
        " max_model_len of vLLM, if the model takes them"
    )
    short = facts.context_tokens < 32_768
    return Finding("context", True, f"{facts.context_tokens} tokens", remedy, warns=short)


def not_reached(error: ApiError, url: str, *, named: bool = True) -> list[Finding]:
    """Return findings that show how far the edge came, and what stopped it.

    named: False if nobody has named this verifier, so that none need run yet."""
    reached = Finding("verifier", True, f"{url} answers")
    if error.error_code == "verifier_unauthorized":
        remedy = "set PICOSPEC_VERIFIER_KEY to one of the keys that the verifier accepts"
        return [reached, Finding("key", False, error.message, remedy)]
    if "certificate" in error.message:
        remedy = "verifier_ca must name the PEM file of the authority that signed it"
        return [reached, Finding("certificate", False, error.message, remedy)]
    if error.error_code == NO_PICOSPEC:
        finding = f"{url} answers, but speaks no PicoSpec that an edge can use"
        return [Finding("verifier", False, finding, f"its operator runs: {START_PLUGIN}")]
    if urlsplit(url).hostname in LOOPBACK and "refused" in error.message:
        if not named:
            return [Finding("verifier", True, "not running here; picospec up starts it")]
        remedy = "start what forwards this port, such as ssh -L; picospec up starts both ends"
        return [Finding("verifier", False, f"nothing listens at {url}", remedy)]
    remedy = (
        "check the address (https:// if the server has a certificate), the firewall, and the"
        " verifier's own log"
    )
    if isinstance(error, EngineFault):
        remedy = "is this the address of another service?"
    return [Finding("verifier", False, error.message, remedy)]
