"""Settings of the edge. Read once, at start; passed down by value; never global.

From strongest to weakest: the command line, the environment, a TOML file, the defaults below.
In the environment a field is PICOSPEC_EDGE__FIELD, a nested one PICOSPEC_EDGE__PACING__FIELD.
Keys come from the environment and from nowhere else: PICOSPEC_API_KEYS (comma separated, those
that clients need) and PICOSPEC_VERIFIER_KEY (the one that this edge shows the verifier).
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


class PacingSettings(BaseModel):
    """When to draft and when to send; see speculation.drafting.policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_survival: Annotated[float, Field(ge=0, le=1)] = DraftSettings().min_survival
    """Stop guessing when the whole chain stands with less probability than this."""

    flush_tokens: Annotated[int, Field(ge=1, le=64)] = DraftSettings().flush_tokens
    """Guesses in one message."""


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
    """PEM. The authority of the verifier's certificate; None: the system's."""

    draft_model: str = "qwen2.5-coder"
    """A pair of the catalogue (its draft model is used), or the path of a GGUF file."""

    drafter: Literal["model", "none", "noise"] = "model"
    """`none`: only lookup drafts. `noise`: useless drafts, to measure what they cost."""

    lookup: bool = True
    """DraftToken what followed when the same was said before, or have the draft model read it, where
    that pays; in `coupled` only."""

    slots: Annotated[int, Field(ge=1, le=64)] = 4
    """Jobs that can draft at once; more run without drafts."""

    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Of each slot. A job that grows longer goes on without drafts."""

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """CPU cores this process stays on (Linux). Empty: all."""

    judge: Judge = "coupled"
    fill: Fill = "auto"
    pacing: PacingSettings = PacingSettings()

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
    def draft_pacing(self) -> DraftSettings:
        return DraftSettings(**self.pacing.model_dump())

    @property
    def shown_key(self) -> str | None:
        """The verifier's key. On one machine both ends may share their keys."""
        if self.verifier_key is not None:
            return self.verifier_key.get_secret_value()
        if self.api_keys and self.verifier_url.host in _THIS_MACHINE:
            return self.api_keys[0].get_secret_value()
        return None


def load(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> EdgeSettings:
    """Return the settings. Raises pydantic.ValidationError, OSError, or ValueError for TOML.

    overrides: nested, as the file is.
    """

    verifier_key = environ.get(_SECRETS["verifier_key"], "").strip()
    values = {
        **overrides,
        "api_keys": sources.keys(environ.get(_SECRETS["api_keys"], "")),
        "verifier_key": SecretStr(verifier_key) if verifier_key else None,
    }
    return sources.load(EdgeSettings, path, values, _SECRETS)
