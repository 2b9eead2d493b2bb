"""What vLLM must refuse in a request beside speculation, in the place of its own rule.

vLLM refuses min_p and logit_bias there, which both runners' samplers serve. And it accepts more
tokens of some settings than the worker of Model Runner V2 has place for, which ends the engine.
"""

from __future__ import annotations

from typing import Any, Final

from vllm.exceptions import VLLMValidationError

MOST: Final = {"stop_token_ids": 112, "logit_bias": 1024, "allowed_token_ids": 1024}
"""From vllm/v1/worker/gpu/sample/logit_bias.py, where 128 stop tokens can be barred. Among them
are the model's own, which are not known here."""


def check(params: Any, speculative_config: Any) -> None:
    """Raise VLLMValidationError, which names the parameter. params: vLLM's SamplingParams."""
    if speculative_config is None or speculative_config.method == "custom_class":
        return  # Model Runner V1
    asked = {
        "stop_token_ids": params.all_stop_token_ids if params.min_tokens else (),
        "logit_bias": params.logit_bias or (),
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    for name, tokens in asked.items():
        if len(tokens) > MOST[name]:
            raise VLLMValidationError(f"{name}: more than {MOST[name]} tokens", parameter=name)
