"""Settings of the verifier. Read once, at start; passed down by value; never global.

From strongest to weakest: the command line, the environment, a TOML file, the defaults below.
In the environment a field is PICOSPEC_VERIFIER__FIELD, a nested one PICOSPEC_VERIFIER__A__B.
API keys come from PICOSPEC_API_KEYS (comma separated) and from `keys_file`, which has hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from picospec.gateway.hosting.settings import Port, ServerSettings, Table
from picospec.speculation.protocol.messages import Limits
from picospec.verifier.llama_target.settings import LlamaSettings

EXACT_DRAFTS: Final = 62
"""Most draft tokens of a session in one pass of llama.cpp. With the token before them they take
63 rows; from 64 rows on its attention rounds differently, and texts could change."""

VLLM_DRAFTS: Final = 127
"""Most draft tokens of a session in one step of vLLM, whose kernels take 128; one of them may
be a committed token that vLLM is told of."""

MAX_VERIFY: Final = {"llama": 16, "vllm": 32}
"""Default of speculation.max_verify, in draft tokens. It is lower for llama.cpp, because rows
are dear on a CPU and one rejected draft token makes the rest of a long pass useless. Found with
`python -m picospec.bench.simulator`; docs/decisions.md has the figures."""

Seconds = Annotated[float, Field(gt=0, le=86400)]


class SessionSettings(Table):
    """How long a session may wait, and how many there may be."""

    max_sessions: Annotated[int, Field(ge=1, le=4096)] = 64
    """How many may run at once; one more gets a 429. A target may have slots for fewer."""

    first_token_timeout_s: Seconds = 600.0
    """Ends a session that gets no draft while its prompt is read, which may take long."""

    idle_timeout_s: Seconds = 60.0
    """Ends a session that, later on, gets no draft while nothing is generated."""

    max_age_s: Seconds = 7200.0
    """Ends a session that is older, whatever it does, so that none holds its slot for ever."""

    replacement_timeout_s: Seconds = 30.0
    """`separate`: ends a session whose edge does not send a rejected token's replacement."""


class SpeculationSettings(Table):
    max_verify: Annotated[int, Field(ge=1, le=256)] | None = None
    """Most draft tokens of a session judged in one pass. None: see MAX_VERIFY."""

    max_ahead: Annotated[int, Field(ge=1, le=4096)] = 128
    """Most draft tokens of a session kept beyond its last committed token."""

    seed_exact: bool = False
    """vLLM with a --speculative-config: judge its draft tokens for requests of no session as
    sessions' are judged, so that a text depends on its seed alone, as without speculation."""


class VerifierSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="PICOSPEC_VERIFIER__")

    port: Port = 9000
    target: Literal["llama", "vllm"] = "llama"
    model: str = "qwen2.5-coder"
    """A pair of the catalogue (its target is served), or the path of a model."""

    served_name: str | None = None
    """The name by which clients ask for the model. None: its catalogue name, or its file's."""

    chat_template: Path | None = None
    """A file in Jinja that replaces the model's own chat template."""

    sessions: SessionSettings = SessionSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    llama: LlamaSettings = LlamaSettings()
    vllm: dict[str, Any] = Field(default_factory=dict)
    """The flags of `vllm serve`, by their names, and one of ours: `self_test`."""

    body_limit_bytes: Annotated[int, Field(ge=1 << 21)] | None = None

    load_timeout_s: Seconds = 7200.0
    """How long the target may take to load, or vLLM to fetch it. Then the process ends."""

    pass_timeout_s: Seconds = 300.0
    """How long one pass may take. When none has ended for so long, or the engine does not
    answer, the process ends, to be started again. Of a 7B model on one core of a CPU, the
    longest pass of llama.cpp takes about 50 s, and a full step of vLLM about 200 s; on a GPU it
    is a second. vLLM itself gives a step up after 300 s."""

    @model_validator(mode="after")
    def _pass_holds_a_draft(self) -> Self:
        most = self.limits.max_verify
        if self.target == "llama" and self.llama.max_rows <= most:
            raise ValueError("llama.max_rows must exceed speculation.max_verify")
        if self.target == "llama" and most > EXACT_DRAFTS:
            raise ValueError(f"speculation.max_verify: llama.cpp is exact up to {EXACT_DRAFTS}")
        if self.target == "vllm" and most > VLLM_DRAFTS:
            raise ValueError(f"speculation.max_verify: vLLM takes at most {VLLM_DRAFTS}")
        return self

    @property
    def limits(self) -> Limits:
        """The limits that a session is opened with."""
        return Limits(
            self.speculation.max_verify or MAX_VERIFY[self.target],
            self.speculation.max_ahead,
            self.sessions.idle_timeout_s,
        )


load = VerifierSettings.load
