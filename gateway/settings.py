"""Settings of the OpenAI face. Part of each service's own settings; passed down by value."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class GatewaySettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: tuple[SecretStr, ...] = ()
    """Any of them opens every path but /health and /metrics. Empty: no key is asked for."""

    body_limit_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    """A larger request body gets a 413. 8 MiB holds the text of any context length in use."""

    max_choices: Annotated[int, Field(ge=1, le=128)] = 16
    """Choices one request may generate at once: prompts times `n`."""
