"""The settings in `Sampling.extras` that change logits, decoded and checked."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from speculation.errors import InvalidSetting
from speculation.messages import Open
from speculation.model_facts import TokenId
from speculation.untrusted import Malformed, decode_json

MAX_BIASES: Final = 1024
"""A logit_bias has at most this many tokens, because each row of the session pays for them."""

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]


class LogitSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """The defaults change nothing. `adjustments` describes the effects of the others."""

    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=2.0)] = 1.0
    logit_bias: Annotated[
        dict[Annotated[TokenId, Meta(ge=0)], Bias], Meta(max_length=MAX_BIASES)
    ] = {}
    min_tokens: Annotated[int, Meta(ge=0)] = 0

    @staticmethod
    def of(request: Open, *, vocabulary_size: int) -> LogitSettings:
        """Return the settings of a request. Raise InvalidSetting, which names the field."""
        extras = request.sampling.extras
        if not extras:
            return _NONE
        try:
            settings = decode_json(msgspec.json.encode(extras), LogitSettings)
        except Malformed as error:
            named = re.search(r"\$\.(\w+)", str(error))
            raise InvalidSetting(named[1] if named else "extras", str(error)) from None
        if settings.min_tokens > request.max_tokens:
            reason = f"{settings.min_tokens} is more than max_tokens, {request.max_tokens}"
            raise InvalidSetting("min_tokens", reason)
        if (highest := max(settings.logit_bias, default=0)) >= vocabulary_size:
            raise InvalidSetting("logit_bias", f"{highest} is not a token")
        return settings


_NONE: Final = LogitSettings()
LOGIT_SETTINGS: Final = LogitSettings.__struct_fields__
"""The names of the settings, which are OpenAI's or vLLM's."""
