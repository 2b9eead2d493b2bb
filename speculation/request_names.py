"""Names that both ends give to what is asked of them, besides messages."""

from __future__ import annotations

from typing import Final

import msgspec

from speculation.model_facts import TokenId


class Stopping(msgspec.Struct):
    """A client's settings that change `Open.stop_tokens`. They are in no message, because both
    ends stop at `stop_tokens` and at nothing else."""

    ignore_eos: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()


STOPPING: Final = Stopping.__struct_fields__

PREDICTION: Final = "prediction"
"""A client's setting that changes no answer: its tokens are sent in `Open.predicted`."""

ANSWER_CACHE: Final = "/v1/picospec/pool"
"""A DELETE on this path makes either end forget answers; at a verifier the parameter SALT names
one of the tenant's users."""

PROMPT_LOGPROBS: Final = "prompt_logprobs"
"""A verifier with this feature gives, by its own API, the log-probabilities of a prompt. No
session has them."""

SALT: Final = "cache_salt"
"""This extra separates an edge's tenants: the verifier reuses a prompt's cache only among
sessions with the same key and salt. It changes no answer."""
