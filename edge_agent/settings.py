"""Settings of the edge, which are read once at start and passed down by value.

The command line wins over the environment, that over a TOML file, that over the defaults below.
A field is PICOSPEC_EDGE__FIELD in the environment, a nested one PICOSPEC_EDGE__DRAFTING__FIELD.
Keys come from the environment alone: PICOSPEC_API_KEYS holds those that clients must show, with
commas between them, and PICOSPEC_VERIFIER_KEY the one that this edge shows the verifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.hosting import settings_sources as sources
from gateway.settings import GatewaySettings
from speculation.drafting.policy import DraftSettings
from speculation.protocol.messages import Fill, Judge

_SECRETS: Final = {
    "api_keys": "PICOSPEC_API_KEYS",
    "verifier_key": "PICOSPEC_VERIFIER_KEY",
}
_THIS_MACHINE: Final = ("127.0.0.1", "localhost", "[::1]")


class DraftingSettings(BaseModel):
    """When to draft and when to send; see speculation.drafting.policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_survival: Annotated[float, Field(ge=0, le=1)] = DraftSettings().min_survival
    """Drafting pauses when the probability that the whole chain is accepted is below this."""

    flush_tokens: Annotated[int, Field(ge=1, le=64)] = DraftSettings().flush_tokens
    """Draft tokens that are sent in one message."""


class EdgeSettings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PICOSPEC_EDGE__",
        env_nested_delimiter="__",
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    verifier_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:9000")
    verifier_ca: Path | None = None
    """PEM file of the authority of the verifier's certificate; None means the system's."""

    draft_model: str = "qwen2.5-coder"
    """A pair of the catalogue (its draft model is used), or the path of a GGUF file."""

    drafter: Literal["model", "none"] = "model"
    """With `none` only lookup drafts."""

    lookup: bool = True
    """Whether to draft also what followed the same tokens earlier in the text, where that is
    expected to save time; in `coupled` only."""

    slots: Annotated[int, Field(ge=1, le=64)] = 4
    """Answers that draft at the same time; further ones run without drafts."""

    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens that a slot holds. An answer that grows longer goes on without drafts."""

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """CPU cores that this process may use (Linux only); empty means all."""

    judge: Judge = "coupled"
    fill: Fill = "auto"
    drafting: DraftingSettings = DraftingSettings()

    body_limit_bytes: Annotated[int, Field(ge=1024)] = 8 << 20
    max_choices: Annotated[int, Field(ge=1, le=128)] = 16
    log_format: Literal["console", "json"] = "console"

    api_keys: tuple[SecretStr, ...] = ()
    verifier_key: SecretStr | None = None

    @property
    def gateway(self) -> GatewaySettings:
        return GatewaySettings(
            api_keys=self.api_keys,
            body_limit_bytes=self.body_limit_bytes,
            max_choices=self.max_choices,
        )

    @property
    def draft_settings(self) -> DraftSettings:
        return DraftSettings(**self.drafting.model_dump())

    @property
    def shown_key(self) -> str | None:
        """The key for the verifier. Both ends may share the clients' keys on one machine."""
        if self.verifier_key is not None:
            return self.verifier_key.get_secret_value()
        if self.api_keys and self.verifier_url.host in _THIS_MACHINE:
            return self.api_keys[0].get_secret_value()
        return None


def load(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> EdgeSettings:
    """Return the settings. Raises pydantic.ValidationError, OSError, or ValueError for TOML.

    overrides: these win over environment and file; tables are nested as in the file.
    """
    verifier_key = environ.get(_SECRETS["verifier_key"], "").strip()
    values = {
        **overrides,
        "api_keys": sources.keys(environ.get(_SECRETS["api_keys"], "")),
        "verifier_key": SecretStr(verifier_key) if verifier_key else None,
    }
    return sources.load(EdgeSettings, path, values, _SECRETS)
