"""Makes the Open of a session from a client's request; the engines of both ends use it.

So a request becomes the same session with and without an edge, whatever its settings are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from picospec.speculation.protocol.errors import InvalidSetting
from picospec.speculation.protocol.messages import (
    Fill,
    Judge,
    ModelFacts,
    Open,
    Sampling,
    TokenId,
)


class Asked(Protocol):
    """A client's request; gateway.ports.Job implements it."""

    @property
    def prompt(self) -> tuple[TokenId, ...]: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def sampling(self) -> object:
        """An object that has the fields of Sampling that every target serves."""

    @property
    def seed(self) -> int: ...
    @property
    def top_logprobs(self) -> int | None: ...
    @property
    def extras(self) -> Mapping[str, object]: ...


class _Stopping(msgspec.Struct):
    ignore_eos: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()


STOPPING: Final = _Stopping.__struct_fields__
"""These extras set `Open.stop_tokens`. They are in no message, because both ends stop at
`stop_tokens` and at nothing else."""

PREDICTION: Final = "prediction"
"""This extra changes no answer: its tokens are sent in `Open.predicted`."""


POOL: Final = "/v1/picospec/pool"
"""A DELETE on this path makes either end forget answers; at a verifier the parameter SALT names
one of the tenant's users."""

SALT: Final = "cache_salt"
"""This extra separates an edge's tenants: the verifier reuses a prompt's cache only among
sessions with the same key and salt. It changes no answer."""


def opening(
    asked: Asked,
    facts: ModelFacts,
    *,
    judge: Judge = "coupled",
    fill: Fill = "auto",
    salt: str | None = None,
) -> Open:
    """Return the Open for a client's request. salt: see SALT; not sent to a verifier that does
    not know it. Raise InvalidSetting for a stop token that is no token."""
    extras = {
        name: msgspec.Raw(msgspec.json.encode(value))
        for name, value in asked.extras.items()
        if name not in STOPPING and name != PREDICTION
    }
    if salt is not None and SALT in facts.features:
        extras[SALT] = msgspec.Raw(msgspec.json.encode(salt))
    given = msgspec.convert(asked.sampling, Sampling, from_attributes=True)
    return Open(
        model=facts.model,
        vocabulary=facts.vocabulary,
        prompt=asked.prompt,
        sampling=msgspec.structs.replace(given, extras=extras),
        seed=asked.seed,
        max_tokens=asked.max_tokens,
        stop_tokens=_stop_tokens(asked.extras, facts),
        judge=judge,
        fill=fill,
        top_logprobs=asked.top_logprobs,
        identity=facts.identity,
    )


def _stop_tokens(extras: Mapping[str, object], facts: ModelFacts) -> tuple[TokenId, ...]:
    """Return the stop tokens: the model's own, unless they are ignored, and the client's."""
    asked = msgspec.convert({k: v for k, v in extras.items() if k in STOPPING}, _Stopping)
    for token in asked.stop_token_ids:
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidSetting("stop_token_ids", f"{token} is not a token")
    own = () if asked.ignore_eos else facts.stop_tokens
    return tuple(dict.fromkeys((*own, *asked.stop_token_ids)))
