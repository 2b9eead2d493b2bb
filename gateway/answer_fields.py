"""This table has the fields that change an answer where an endpoint does not serve them, and
their values without effect. They are OpenAI's, vLLM's and llama-server's.

A request that sets such a field is served as it asks or gets a 400 that names the field. Any
other field cannot change an answer, so it is accepted and reported as ignored.

A field that only refines one of these is not listed: `mirostat_tau` means nothing without
`mirostat`, and `dry_base` nothing without `dry_multiplier`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_UNSERVED: Final = """
    allowed_token_ids audio chat_parser chat_template generation_prompt
    guided_whitespace_pattern messages moderation previous_input_messages prompt
    prompt_embeds prompt_logprobs repetition_detection truncate_prompt_tokens
    web_search_options
"""
_FALSE: Final = """
    add_special_tokens continue_final_message early_stopping echo enable_response_messages
    grammar_lazy penalize_nl post_sampling_probs return_prompt_text return_token_ids
    return_tokens return_tokens_as_token_ids use_beam_search watermarking
"""
_TRUE: Final = "add_generation_prompt include_reasoning parse_tool_calls skip_special_tokens"
_EMPTY: Final = """
    bad_words documents functions grammar_triggers image_data logits_processors
    logprob_token_ids lora tools
"""
_ZERO: Final = """
    dry_multiplier dynatemp_range mirostat n_indent n_probs top_logprobs xtc_probability
"""
_ONE: Final = "best_of length_penalty tfs_z typ_p typical_p"
_MINUS_ONE: Final = """
    adaptive_target reasoning_budget_tokens thinking_budget thinking_budget_tokens
    thinking_token_budget top_n_sigma
"""
_CHAIN: Final = ["top_k", "typ_p", "top_p", "min_p"]

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **dict.fromkeys(_UNSERVED.split(), ()),
    **dict.fromkeys(_FALSE.split(), (False,)),
    **dict.fromkeys(_TRUE.split(), (True,)),
    **dict.fromkeys(_EMPTY.split(), ([],)),
    **dict.fromkeys(("chat_template_kwargs", "vllm_xargs"), ({},)),
    **dict.fromkeys(_ZERO.split(), (0,)),
    **dict.fromkeys(_ONE.split(), (1,)),
    **dict.fromkeys(_MINUS_ONE.split(), (-1,)),
    "function_call": ("none",),
    "min_keep": (0, 1),
    "modalities": (["text"],),
    "samplers": (
        ["penalties", "dry", "top_n_sigma", *_CHAIN, "xtc", "temperature"],
        [*_CHAIN, "temperature"],  # default of llama-server's web page
        "edskypmxt",
        "edkypmxt",
    ),
    "suffix": ("",),
    "t_max_predict_ms": (-1, 0),
    "tool_choice": ("none", "auto"),
}
"""Maps each field to the values that change nothing: its servers' defaults. Any value of an
unserved one would change something."""


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Return True if a value is one of `neutral`, where `false` does not count as 0."""
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)
