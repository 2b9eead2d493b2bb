"""Lists the fields by which OpenAI, vLLM and llama-server let a client change an answer.

A request that sets such a field is served as it asks or gets a 400 that names the field. Any
other field cannot change an answer, so it is accepted and reported as ignored.

A field that only refines one of these is not listed: `mirostat_tau` means nothing without
`mirostat`, and `dry_base` nothing without `dry_multiplier`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.errors import InvalidRequest

_OPENAI: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "messages": (),
    "modalities": (["text"],),
    "moderation": (),
    "prompt": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}

_VLLM: Final[Mapping[str, tuple[object, ...]]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "early_stopping": (False,),
    "enable_response_messages": (False,),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "previous_input_messages": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}

_CHAIN: Final = ["top_k", "typ_p", "top_p", "min_p"]
_LLAMA_SERVER: Final[Mapping[str, tuple[object, ...]]] = {
    "adaptive_target": (-1,),
    "chat_parser": (),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "generation_prompt": (),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "image_data": ([],),
    "lora": ([],),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "n_indent": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "penalize_nl": (False,),
    "post_sampling_probs": (False,),
    "reasoning_budget_tokens": (-1,),
    "return_tokens": (False,),
    "samplers": (
        ["penalties", "dry", "top_n_sigma", *_CHAIN, "xtc", "temperature"],
        [*_CHAIN, "temperature"],  # default of llama-server's web page
        "edskypmxt",
        "edkypmxt",
    ),
    "t_max_predict_ms": (-1, 0),
    "tfs_z": (1,),
    "thinking_budget": (-1,),
    "thinking_budget_tokens": (-1,),
    "top_n_sigma": (-1,),
    "typ_p": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {**_OPENAI, **_VLLM, **_LLAMA_SERVER}
"""Maps each field to the values that change nothing: its servers' defaults."""


OPERATORS: Final = frozenset(
    {"kv_transfer_params", "ec_transfer_params", "priority", "request_id", "session_id"}
)
"""These fields of vLLM's API are an operator's: where KV comes from, whose request is first,
and by which name it is known. No request that is passed on has them."""


def without_operators(body: bytes) -> bytes:
    """Return the JSON object of a body without the fields in OPERATORS; the same bytes if it
    has none. Raises InvalidRequest for any other body, where another parser may find them."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is no JSON object", code="invalid_json") from None
    if OPERATORS.isdisjoint(fields):
        return body
    return msgspec.json.encode({n: v for n, v in fields.items() if n not in OPERATORS})


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Return True if a value is one of `neutral`, where `false` does not count as 0."""
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)
