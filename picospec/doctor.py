"""Runs all checks of `picospec doctor`, in order."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agent.app import open_verifiers
from edge_agent.draft.loading import AUTO, NONE, TargetTokenizer
from edge_agent.link.verifier import NO_PICOSPEC, START_PLUGIN, Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, load
from gateway.errors import ApiError, EngineFault
from gateway.hosting import logs
from gateway.hosting.cores import compute_threads
from gateway.system import LACKS
from local_models.choosing import Consent, DraftModelChoice, HubPolicy, choose_draft
from local_models.errors import ModelError, NoLlama, NotPulled
from local_models.llama_cpp.devices import Placement
from local_models.llama_cpp.library import INSTALL, check_llama
from local_models.llama_cpp.model import Model
from local_models.store import Store, open_store
from local_models.tokenizer_cache import TokenizerCache
from local_models.vocabulary import Relation, Vocabulary, relate
from picospec.configuration import HOST, visible
from picospec.expecting import MeasuredPace, pace
from picospec.preparing import DEFAULT_PAIR
from speculation.model_facts import PROTOCOL_VERSION, Judge, ModelFacts

# The result of a check, and the table of all results.


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    found: str
    remedy: str = ""
    warns: bool = False
    """The check is ok, but could be better: the remedy describes how."""

    @property
    def advice(self) -> str:
        """Return what to do; an empty text if all is well."""
        return self.remedy if self.warns or not self.ok else ""


def report(findings: Sequence[Finding], console: Console) -> bool:
    """Print a table of the findings; return True if all are ok."""
    table = Table("", box=None, pad_edge=False)
    for name in ("what", "found", "what to do"):
        table.add_column(name, overflow="fold")  # what to do is to be copied whole
    for finding in findings:
        warns = finding.ok and finding.warns
        mark = "[yellow]warn[/]" if warns else "[green]ok[/]" if finding.ok else "[red]fail[/]"
        row = (finding.subject, finding.found, finding.advice)
        texts = (escape(visible(text)) for text in row)
        table.add_row(mark, *texts)
    console.print(table)
    return all(finding.ok for finding in findings)


def milliseconds(seconds: float) -> str:
    """Return a time in the form that findings show."""
    return f"{seconds * 1000:.3g} ms"


# Checks this machine: what is installed, its cores, the store and the ports.

TIMEOUT_S: Final = 3.0


def check_engine(check: Callable[[], None] = check_llama, *, needed: bool = True) -> Finding:
    """Load llama.cpp, so that a broken library shows here and not in a request.

    needed: True if the check fails without llama.cpp.
    """
    try:
        check()
    except NoLlama as error:
        return Finding(
            "llama.cpp", not needed, str(error), f"{INSTALL}; it needs a C++ compiler"
        )
    return Finding("llama.cpp", True, "can be loaded")


def check_system(name: str = sys.platform) -> Finding:
    """Name the operating system, and what PicoSpec does without on it."""
    lacks = "; ".join(LACKS.get(name, ()))
    finding = f"{platform.system()} {platform.machine()}"
    return Finding("system", True, f"{finding}; {lacks}" if lacks else finding)


def check_cores() -> Finding:
    """Count the cores. One is enough, but then the two ends take turns on it."""
    count = compute_threads()
    finding = f"{count} to use" if count > 1 else "1: run the verifier on another machine"
    return Finding("cores", True, finding)


def check_cache(directory: Path) -> Finding:
    """Check that models and wheels can be written to the cache."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Finding("cache", False, str(error), f"make {directory} writable")
    return Finding("cache", True, f"{directory} can be written")


def check_models(store: Store, reference: str, *, needed: bool = True) -> Finding:
    """Compare the sha256 of a model's or pair's files, which takes seconds per gigabyte.

    needed: True if the check fails without the files.
    """
    subject = f"models of {reference}"
    try:
        store.verify(reference)
    except ModelError as error:
        if isinstance(error, NotPulled) and not needed:
            return Finding(subject, True, "not here; a service that runs them fetches them")
        return Finding(subject, False, str(error), f"picospec models pull {reference}")
    return Finding(subject, True, "here, and as they should be")


def check_port(name: str, port: int, variable: str) -> Finding:
    """Check that a port is free, or that a healthy service of ours listens on it."""
    subject = f"{name} port {port}"
    if (reason := bind_error(port)) is None:
        return Finding(subject, True, "free")
    if _is_healthy(f"http://{HOST}:{port}"):
        return Finding(subject, True, f"a healthy {name} has it")
    remedy = f"stop what holds it, or choose another with {variable}"
    return Finding(subject, False, reason, remedy)


def bind_error(port: int) -> str | None:
    """Return the reason why nothing can listen on a port of this machine, if any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _is_healthy(url: str) -> bool:
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=TIMEOUT_S, trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200


# Checks the way to the verifier, as an edge with these settings would use it.

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
ONE_VERSION: Final = "install one version of PicoSpec at both ends"
ROUND_TRIPS: Final = 5
AGENT_TOKENS: Final = 32_768


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
        for _ in range(ROUND_TRIPS):
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
    short = facts.context_tokens < AGENT_TOKENS
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


# Checks the draft model: its vocabulary, and its speed here compared to the target's.

NOTEWORTHY_GAIN: Final = 1.05
NO_ROOM: Final = "free some memory, or choose a smaller draft model"


async def check_drafting(
    settings: EdgeSettings, store: Store, verifier: Verifier, facts: ModelFacts
) -> list[Finding]:
    """Check that the draft model is here, and check its vocabulary and speed."""
    own = (each.draft_model for each in settings.models if each.name == facts.model)
    if wanted := next(own, None):
        settings = settings.model_copy(update={"draft_model": wanted})
    cache = TokenizerCache(store.root / "tokenizers")
    name: str | None = settings.draft_model
    try:
        target = (await TargetTokenizer(verifier, cache, None)()).vocabulary
        choice = await asyncio.to_thread(draft_choice, settings, store, facts, target)
        if (name := choice.name) is None:
            finding = f"none: only repeated text is drafted; {choice.why}"
            warns = bool(choice.remedy)
            return [Finding("draft model", True, finding, choice.remedy, warns=warns)]
        path = store.find(name, "draft").path
        model = await asyncio.to_thread(Model, path, placement=Placement(settings.gpu_layers))
    except ApiError as error:
        return [Finding("vocabulary", False, error.message, "see the verifier's log")]
    except NoLlama as error:
        return [Finding("draft model", False, str(error), INSTALL)]
    except ModelError as error:
        remedy = f"picospec models pull --as draft {name}"
        if isinstance(error, NotPulled):
            remedy += ": then the doctor times it"
            finding = f"{name} is not here; an edge fetches it when it starts"
            return [Finding("draft model", True, finding, remedy, warns=True)]
        return [Finding("draft model", False, str(error), remedy)]
    with closing(model):
        relation = relate(target, model.vocabulary)
        return [
            Finding("draft model", True, f"{name}: {choice.why}"),
            check_vocabulary(relation, settings.judge),
            *await check_pace(pace(verifier, facts, model, settings)),
        ]


def draft_choice(
    settings: EdgeSettings, store: Store, facts: ModelFacts, target: Vocabulary
) -> DraftModelChoice:
    """Return the draft model that an edge would have now: the doctor fetches none."""
    if settings.drafter == "none" or settings.draft_model == NONE:
        return DraftModelChoice(None, "the settings want none")
    if settings.draft_model != AUTO:
        return DraftModelChoice(settings.draft_model, "the settings name it")
    consent: Consent = "never" if settings.draft_from_hub == "never" else "ask"
    policy = HubPolicy(consent, settings.draft_max_gb, ask=lambda _: False)
    return choose_draft(store, facts.model, target, policy)


def check_vocabulary(relation: Relation, judge: Judge) -> Finding:
    """Check that the draft model's tokens can serve as drafts for the target."""
    findings = {
        "identical": "the draft model has the target's tokens",
        "padded": "the draft model has the target's tokens; padding is never drawn",
        "different": "the draft model has other tokens, which are translated",
    }
    same, ok = relation != "different", relation != "different" or judge == "coupled"
    remedy = "a draft model of the target's family gains more"
    if not ok:
        remedy = 'judge = "coupled", or a draft model of the target\'s family'
    return Finding(
        "vocabulary", ok, f"{relation}: {findings[relation]}", remedy, warns=not same
    )


async def check_pace(measuring: Awaitable[MeasuredPace]) -> list[Finding]:
    """Check the speed of both ends, and what it gains, once it is measured."""
    try:
        pace = await measuring
    except (ApiError, TimeoutError) as error:
        reason = f"the target alone does not answer: {error}"
        return [Finding("speed", False, reason, "see the verifier's log")]
    except ModelError as error:
        return [Finding("speed", False, f"the draft model does not run: {error}", NO_ROOM)]
    return [check_speed(pace), check_gain(pace)]


def check_speed(pace: MeasuredPace) -> Finding:
    """Check that the draft model is faster than the target: else it gains nothing."""
    text = (
        f"a token takes the target {milliseconds(pace.token_s)}, and the draft model"
        f" {milliseconds(pace.draft_s)}; the round trip takes {milliseconds(pace.rtt_s)}"
    )
    remedy = "a smaller draft model, or a GPU for it: one as slow as the target gains nothing"
    return Finding("speed", pace.draft_s < pace.token_s, text, remedy)


def check_gain(pace: MeasuredPace) -> Finding:
    """Warn if the times predict that drafting gains nothing on any kind of text."""
    gains = pace.gains()
    gain_texts = " and ".join(f"{kind} {gain:.2f} times" for kind, gain in gains.items())
    shares = " and ".join(f"{share:0.0%}" for share in pace.agreement.values())
    slowed = f", which it makes {pace.slowed:.2f} times as long" if pace.slowed > 1.02 else ""
    text = (
        f"expect {gain_texts} as fast as the target alone: the draft model has {shares} of its"
        f" tokens{slowed}"
    )
    remedy = "a larger target, a verifier further away, or a draft model nearer to the target"
    return Finding("gain", True, text, remedy, warns=max(gains.values()) < NOTEWORTHY_GAIN)


def examine(
    config: Path | None,
    url: str | None,
    draft: str | None,
    model: str | None,
    edge_port: int,
    verifier_port: int,
    *,
    named: bool = True,
) -> list[Finding]:
    """Check this machine and the verifier, with the settings that an edge would have.

    url, draft: the verifier and the draft model; None: those of the settings. model: a model or
    pair that must be here; None: the default pair may be missing, because an edge has no
    target. named: see `not_reached`. Raises ValueError for settings, OSError, ModelError.
    """
    logs.configure("console")
    fields: dict[str, object] = {} if draft is None else {"draft_model": draft}
    if url is not None:
        fields |= {"verifier_urls": [url], "verifier_url": None}
    settings, store = load(config, os.environ, fields), open_store(os.environ)
    named_models = store.catalogue.files(DEFAULT_PAIR) if model is None else [model]
    here = [
        check_system(),
        check_engine(needed="none" not in (settings.drafter, settings.draft_model)),
        check_cores(),
        check_cache(store.root),
        *(check_models(store, name, needed=model is not None) for name in named_models),
        check_port("edge", edge_port, "EDGE_PORT"),
        check_port("verifier", verifier_port, "VERIFIER_PORT"),
    ]
    return here + asyncio.run(check_edge(settings, named=named))
