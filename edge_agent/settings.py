"""Settings of the edge, which are read once at start and passed down by value.

The command line overrides the environment, which overrides a TOML file and the defaults below.
A field is PICOSPEC_EDGE__FIELD in the environment, a nested one PICOSPEC_EDGE__PROXY__FIELD.
Keys come from the environment alone: PICOSPEC_API_KEYS holds those that clients must show,
separated by commas, PICOSPEC_VERIFIER_KEY the one that this edge shows the verifier,
PICOSPEC_PROXY_KEY the one for the upstream of `proxy`, and PICOSPEC_FALLBACK_KEY the one for
`fallback_server`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    AnyUrl,
    BeforeValidator,
    Field,
    SecretStr,
    UrlConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from gateway.hosting.settings import Port, ServiceSettings, Table
from gateway.hosting.strangers import is_loopback
from speculation.messages import Fill
from speculation.model_facts import Judge

_LOCAL: Final = AnyUrl("http://127.0.0.1:9000")


Url = TypeVar("Url", bound=AnyUrl | AnyHttpUrl)


def _address(url: Url) -> Url:
    if url.username is not None or url.password is not None:
        raise ValueError(
            "it may hold no user and no password; set PICOSPEC_VERIFIER_KEY, of `proxy`"
            " PICOSPEC_PROXY_KEY, and of `fallback_server` PICOSPEC_FALLBACK_KEY"
        )
    if url.query is not None or url.fragment is not None:
        raise ValueError("it may have no query and no fragment")
    return url


VerifierUrl = Annotated[AnyHttpUrl, AfterValidator(_address)]

DNS: Final = "dns+"
"""An address with this prefix stands for all verifiers behind its name."""


_HOST_PORT: Final = re.compile(r"[^/]+:[0-9]+(/.*)?")


def _completed(value: object) -> object:
    """Return an address as people type it, in full: of `host:port`, without the `/v1` of the
    OpenAI API, or a slash at its end."""
    if not isinstance(value, str):
        return value
    text = value.strip().rstrip("/").removesuffix("/v1")
    return f"http://{text}" if _HOST_PORT.fullmatch(text) else text


VerifierAddress = Annotated[
    AnyUrl,
    UrlConstraints(
        allowed_schemes=["http", "https", f"{DNS}http", f"{DNS}https"], host_required=True
    ),
    AfterValidator(_address),
    BeforeValidator(_completed),
]


_SEGMENT: Final = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
RelayPath = Annotated[str, Field(pattern=rf"^/v[0-9]+(/{_SEGMENT})+(/\*)?$")]
"""A path; one that ends in `/*` stands for all paths below it."""

_OWN_PATHS: Final = (
    "/v1/chat/", "/v1/completions", "/v1/models", "/v1/responses", "/v1/messages",
    "/v1/picospec", "/v1/speculate", "/v1/model-facts", "/v1/tokenizer", "/v1/prompt",
)  # fmt: skip
"""Paths that begin so are answered here, or are between this edge and its verifier."""


class ProxySettings(Table):
    """The requests to pass on without drafts, and to whom. The key is PICOSPEC_PROXY_KEY."""

    url: VerifierUrl | None = None
    """The service for `paths` and `models`; None means the verifier in use."""

    paths: tuple[RelayPath, ...] = (
        "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/moderations", "/v1/audio/*",
        "/v1/images/*",
    )  # fmt: skip
    """A POST to one of these is passed on."""

    models: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Requests for one of these models are passed on, whichever endpoint they use."""

    body_limit_bytes: Annotated[int, Field(ge=1024)] = 128 << 20
    """A request to one of `paths` may have this many bytes."""

    @field_validator("paths")
    @classmethod
    def _are_not_this_edges(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path.startswith(_OWN_PATHS):
                raise ValueError(f"{path} is not proxied; `models` are, by all endpoints")
        return paths

    @field_validator("url")
    @classmethod
    def _is_a_host(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is not None and (url.path or "/").rstrip("/").endswith("/v1"):
            raise ValueError("leave the /v1 out: it is in `paths`")
        return url


Fallback = Literal["none", "draft", "server", "server,draft"]


def fallback_order(fallback: Fallback | None) -> Sequence[str]:
    """Return who answers while no verifier can be reached, the first of them first."""
    return fallback.split(",") if fallback not in (None, "none") else []


class FallbackServerSettings(Table):
    """Another server, with OpenAI's API, which answers for absent verifiers. The key is
    PICOSPEC_FALLBACK_KEY."""

    url: Annotated[VerifierUrl, BeforeValidator(_completed)] | None = None
    """The server's address. It is asked at the path that the client asked for."""

    model: Annotated[str, Field(max_length=200)] = ""
    """The server is asked for the model of this name."""


class ModelSettings(Table):
    """These fields say of one model what its verifiers do not; an edge needs none of them."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """The name under which its verifiers serve it."""

    verifier_urls: tuple[VerifierAddress, ...] = ()
    """The addresses of its verifiers, besides those of the edge's own `verifier_urls` that
    serve it."""

    verifier_key_file: Path | None = None
    """The file with the key that this edge shows at these addresses; None means the key of
    PICOSPEC_VERIFIER_KEY."""

    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Clients may also ask for the model by these names."""

    draft_model: str | None = None
    """Its draft model; None means the edge's `draft_model`."""

    fallback: Fallback | None = None
    """Who answers while none of its verifiers can be reached; None means the edge's
    `fallback`."""

    context_tokens: Annotated[int, Field(ge=64)] | None = None
    """A slot of its draft model, which must be named, holds this many tokens."""

    @model_validator(mode="after")
    def _names_a_draft_model(self) -> Self:
        unnamed = self.draft_model in (None, "auto", "none")
        if unnamed and self.context_tokens is not None:
            raise ValueError("context_tokens: needs a draft_model that is named")
        if self.draft_model in ("auto", "none") and "draft" in fallback_order(self.fallback):
            raise ValueError("fallback: `draft` needs a draft_model that is named")
        return self


class EdgeSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PICOSPEC_EDGE__", hide_input_in_errors=True)
    secrets = ServiceSettings.secrets | {
        "verifier_key": "PICOSPEC_VERIFIER_KEY",
        "proxy_key": "PICOSPEC_PROXY_KEY",
        "fallback_key": "PICOSPEC_FALLBACK_KEY",
    }

    port: Port = 8000
    """The edge listens at this port."""

    verifier_urls: Annotated[tuple[VerifierAddress, ...], Field(min_length=1)] = (_LOCAL,)
    """The addresses of the verifiers. Those of one identity (same weights, engine and settings)
    take over each other's answers. dns+http://NAME:PORT and dns+https://NAME:PORT stand for all
    verifiers behind a name, which may come and go."""

    verifier_url: VerifierAddress | None = None
    """The address of the only verifier; it is set instead of `verifier_urls`."""

    models: tuple[ModelSettings, ...] = ()
    """What is to be known of single models, each in a table [[models]]. The edge serves all
    models that its verifiers have, with a table or without one; the first is the one that is
    meant where a request names none."""

    verifier_ca: Path | None = None
    """PEM file of the authority for the verifiers' certificates; None means the system's."""

    allow_plain_http: bool = False
    """A key may go to another machine by plain HTTP, where everybody on the way can read it."""

    client_certificate: Path | None = None
    """PEM file of the certificate chain that this edge shows a verifier that asks for it."""

    client_key: Path | None = None
    """PEM file, PKCS#8, of the key of `client_certificate`."""

    failover_deadline_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """An answer whose verifier is lost waits this long for one that goes on."""

    fallback: Fallback = "none"
    """This answers while no verifier can be reached, and says so: the server of
    `fallback_server`, the draft model alone, or that if the server cannot. The draft model must
    be named, because only a verifier can tell which one `auto` means; it is then also a model
    of its own, draft:NAME."""

    draft_model: str = "auto"
    """A name of the catalogue (of a pair, its draft model is used), owner/repo, hf://... or a
    path; "auto": one that fits the target (local_models.choosing), or none; "none": draft
    tokens come only from lookup."""

    draft_from_hub: Literal["ask", "always", "never"] = "ask"
    """With `auto`, a draft model that the catalogue lacks may come from the hub: after a
    question at a terminal, which a service has not; without one (`always`); or `never`."""

    draft_max_gb: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """With `auto`, a draft model from the hub has at most this size."""

    lookup: bool = True
    """If true, also draft what followed the same tokens earlier in the text, where that is
    expected to save time; in `coupled` only."""

    grammars: bool = True
    """If true, drafts keep to an answer's grammar, and have the tokens that it forces at once;
    in `coupled` only."""

    answer_cache_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 100_000
    """This many tokens of answers are kept in memory for each key, 12 to 20 bytes each: both
    ends draft from them what an answer repeats."""
    ngram_drafts: bool = True
    """If true, the verifier proposes draft tokens too, where the edge's have not arrived: from
    the prompt, the answer and the client's prediction. In `coupled` with fill `auto` only."""

    draft_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """All draft models together may take so much memory, with the KV of their slots: one is
    loaded when an answer needs it, and the one that was not used for longest goes. None: half
    of the memory that this process may have."""

    slots: Annotated[int, Field(ge=1, le=64)] = 4
    """This many answers can draft at the same time; further ones run without drafts."""

    context_tokens: Annotated[int, Field(ge=64)] | None = None
    """A slot holds this many tokens; the draft model reads only a part of a longer context.
    None: as many as the draft model was trained for, or as fit into the memory."""

    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Threads of the draft model. None: one for each core of this process, less one."""

    gpu_layers: Annotated[int, Field(ge=-1)] = -1
    """A GPU computes this many layers of the draft model, if llama.cpp was built for one; -1
    means all of them."""

    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """This process may use these CPU cores (Linux only); empty means all."""

    judge: Judge = "coupled"
    """Draft tokens are judged by noise that both ends share (`coupled`), so that a seed gives
    the same text with and without an edge, or by rejection sampling (`separate`)."""

    fill: Fill = "auto"
    """When the target generates a token by itself: `always` at once, `auto` if it is not worth
    waiting for draft tokens, `never`."""

    proxy: ProxySettings = ProxySettings()
    fallback_server: FallbackServerSettings = FallbackServerSettings()
    verifier_key: tuple[SecretStr, ...] = ()
    """The key that this edge shows the verifier, if any."""

    proxy_key: tuple[SecretStr, ...] = ()
    """The key that this edge shows at `proxy.url`, if any. It goes to no other host."""

    fallback_key: tuple[SecretStr, ...] = ()
    """The key that this edge shows at `fallback_server.url`, if any. It goes to no other
    host."""

    @property
    def verifiers(self) -> tuple[AnyUrl, ...]:
        """The addresses of the verifiers of any models. They are this machine's only if no
        setting names another one."""
        if self.verifier_url:
            return (self.verifier_url,)
        named = "verifier_urls" in self.model_fields_set
        return () if self._of_models and not named else self.verifier_urls

    @property
    def _of_models(self) -> list[AnyUrl]:
        return [url for model in self.models for url in model.verifier_urls]

    @property
    def shown_key(self) -> str | None:
        """The key that this edge shows its verifiers. A client's key is shown to nobody."""
        return next((key.get_secret_value() for key in self.verifier_key), None)

    @model_validator(mode="after")
    def _shows_no_key_in_the_clear(self) -> Self:
        shown: list[AnyUrl | AnyHttpUrl] = list(self.verifiers) if self.shown_key else []
        for model in self.models:
            shown += model.verifier_urls if model.verifier_key_file or self.shown_key else ()
        if self.proxy.url and self.proxy_key:
            shown.append(self.proxy.url)
        if self.fallback_server.url and self.fallback_key:
            shown.append(self.fallback_server.url)
        plain = [url.host or "" for url in shown if url.scheme.removeprefix(DNS) == "http"]
        if not self.allow_plain_http and (hosts := [h for h in plain if not is_loopback(h)]):
            raise ValueError(
                f"allow_plain_http: a key would go to {hosts[0]} in the clear; give its address"
                " as https://, or set allow_plain_http to true"
            )
        return self

    @model_validator(mode="after")
    def _has_both_parts_of_a_certificate(self) -> Self:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("set client_certificate and client_key, or neither")
        return self

    @model_validator(mode="after")
    def _names_what_falls_back(self) -> Self:
        unnamed = self.draft_model in ("auto", "none")
        choices = [self.fallback, *(model.fallback for model in self.models)]
        orders = map(fallback_order, choices)
        server = self.fallback_server
        if any("server" in each for each in orders) and not (server.url and server.model):
            raise ValueError("fallback: `server` needs fallback_server.url and .model")
        if "draft" in fallback_order(self.fallback) and unnamed:
            raise ValueError("fallback: `draft` needs a draft_model that is named")
        for model in self.models:
            if "draft" in fallback_order(model.fallback) and unnamed and not model.draft_model:
                raise ValueError(f"models: {model.name}: `draft` needs a draft_model")
        return self

    @model_validator(mode="after")
    def _names_verifiers_once(self) -> Self:
        if self.verifier_url and "verifier_urls" in self.model_fields_set:
            raise ValueError("set verifier_url or verifier_urls, and not both")
        urls = [*self.verifiers, *self._of_models]
        if len(set(urls)) < len(urls):
            raise ValueError("verifier_urls: one is named twice")
        names = [name for model in self.models for name in (model.name, *model.aliases)]
        if len(set(names)) < len(names):
            raise ValueError("models: a name stands for two of them")
        return self


load = EdgeSettings.load
