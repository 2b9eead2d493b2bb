"""Settings of the OpenAI API; each service has them as a part of its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from picospec.gateway.output.formats.choose import FormatName
from picospec.gateway.tenants.keys import KeyLimits, digest_of

MAX_CHOICES: Final = 128
"""The most that `max_choices` may be: each choice is a session at the verifier."""


class GatewaySettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: tuple[SecretStr, ...] = ()
    """Each of these keys opens every path; the page and /health, /ready, /metrics,
    /openapi.json and /docs need none. Without keys, here and in `keys_file`, all are open."""

    keys_file: Path | None = None
    """A TOML file of more keys, with names and limits (gateway.tenants.keys); a change of it
    counts within a second. A file without keys lets nobody in."""

    key_limits: KeyLimits = KeyLimits()
    """What a key without limits of its own may use; without any keys, all clients together."""

    share_prefixes: bool = False
    """Whether what a model has read for one key is kept for all: a prompt that begins like one
    of another key is then read sooner, which shows that somebody has asked it."""

    body_limit_bytes: Annotated[int, Field(ge=1024)] | None = None
    """A larger request body gets a 413. So does, whatever is set here, one of more than 1 MiB
    and of more than 32 bytes for each token of the context."""

    model_aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Other names by which clients may ask for the model."""

    accept_any_model: bool = False
    """Whether any name means the model: agents name one of their maker's for small work. An
    answer says which model it is from."""

    cors_origins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Origins whose pages may call this service from a browser, such as
    "https://chat.example"; "*" stands for all."""

    keep_alive_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """A stream in which nothing was shown yet gets a comment this often, in seconds."""

    tool_format: FormatName | None = None
    """How the model writes tool calls, if its chat template does not tell it rightly."""

    max_choices: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 16
    """Limit of the choices that one request may ask for: its prompts times `n`."""

    @property
    def separates_prefixes(self) -> bool:
        """Whether what was read for one key is to be of no use to another; with one key, or
        none, there is no other."""
        several = self.keys_file is not None or len(self.api_keys) > 1
        return several and not self.share_prefixes

    @property
    def key_digests(self) -> list[bytes]:
        """The hashes of `api_keys`."""
        return [digest_of(key.get_secret_value().encode()) for key in self.api_keys]
