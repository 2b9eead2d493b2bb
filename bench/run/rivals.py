"""The rivals are vLLM's own speculation, in vLLM's own server, behind the link.

Each setting of a rival is an engine of its own, and memory seldom holds two. docs/decisions.md
says how the lengths and settings in this file were found.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PLAIN: Final = "cloud-vllm"
NGRAM: Final = "cloud-ngram"
SUFFIX: Final = "cloud-suffix"
DRAFT: Final = "cloud-draft"
HEAD: Final = "cloud-head"

TOKENS: Final = {NGRAM: 32, SUFFIX: 32, DRAFT: 2}
"""vLLM drafts at most this many tokens for a pass, if the arm's name has no number."""

_LOOKUP: Final = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""An n-gram that is looked up in the text has a length in this range, in tokens."""

_SUFFIX: Final = {"suffix_decoding_max_spec_factor": 4.0, "suffix_decoding_min_token_prob": 0.3}
"""vLLM drafts up to the first number of tokens for each matching one, and only tokens whose
frequency there is at least the second."""

_FORGETS: Final = {"suffix_decoding_max_cached_requests": 0}
"""Earlier answers are not cached, because the bench asks the same questions again."""

_PACKAGE: Final = "arctic-inference==0.1.1"
_HAS_PACKAGE: Final = "from importlib import util; exit(not util.find_spec('arctic_inference'))"


Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rival:
    """A Rival has the kind of an arm, and the number of tokens that it drafts."""

    kind: str
    tokens: int = 0
    """0 means vLLM without speculation, the control."""

    config: str = ""
    """vLLM gets this complete `speculative_config` (JSON), if it is not empty."""

    remembers: bool = False
    """True if suffix decoding caches its answers, up to vLLM's own bound."""

    @staticmethod
    def parse(text: str) -> Rival | None:
        """Parse KIND or KIND:TOKENS; return None for another name. Raises ValueError."""
        kind, colon, tokens = text.partition(":")
        if kind == PLAIN and not colon:
            return Rival(PLAIN)
        if kind not in TOKENS:
            return None
        if colon and not (tokens.isdecimal() and int(tokens)):
            raise ValueError(f"{text}: the arm reads {kind}:K, and K is 1 or more")
        return Rival(kind, int(tokens or TOKENS[kind]))

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.tokens}" if self.tokens else self.kind

    def speculation(self, draft_model: str) -> dict[str, str | float]:
        """Return vLLM's `speculative_config`; empty for vLLM without speculation."""
        match self.kind:
            case "cloud-head":
                return dict(json.loads(self.config))
            case "cloud-ngram":
                method: dict[str, str | float] = {"method": "ngram", **_LOOKUP}
            case "cloud-draft":
                method = {"method": "draft_model", "model": draft_model}
            case "cloud-suffix":
                depth = {"suffix_decoding_max_tree_depth": 2 * self.tokens}
                method = {"method": "suffix", **depth, **_SUFFIX}
                method |= {} if self.remembers else _FORGETS
            case _:
                return {}
        return {**method, "num_speculative_tokens": self.tokens}

    def command(self, python: str, model: str, draft_model: str, more: Words) -> Words:
        """Return the command that starts its server. more: the verifier's options."""
        speculation = json.dumps(self.speculation(draft_model))
        module = (python, "-m", "bench.run.stock_vllm", "--model", model)
        return (*module, "--speculation", speculation, *more)

    def check(self, target: str, python: str, draft_model: str, at: Sequence[float]) -> None:
        """Raise a ValueError that names what the arm lacks, before anything is started. at: the
        temperatures."""
        if any(at):
            reason = "vLLM for CPUs draws wrongly where it speculates"
            raise ValueError(f"{self.name} is measured at temperature 0 only: {reason}")
        if target != "vllm":
            raise ValueError(f"{self.name} is vLLM's own: it needs --target vllm")
        if self.kind == DRAFT and not draft_model:
            raise ValueError(f"{self.name} needs --cloud-draft-model, a folder of safetensors")
        if self.kind == SUFFIX and subprocess.run([python, "-c", _HAS_PACKAGE]).returncode:
            how = f"{_PACKAGE}; docs/performance.md says how it is built"
            raise ValueError(f"{self.name} needs a package that {python} lacks: {how}")
