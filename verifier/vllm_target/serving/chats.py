"""How vLLM's own server makes a prompt of a chat, and which settings it takes where a request
has none: packed with the tokenizer, so that an edge makes the same."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.hf import HfRenderer, resolve_chat_template
from vllm.v1.engine.async_llm import AsyncLLM

from picospec.models.tokenizing.chat_template import joined
from picospec.models.tokenizing.tokenizer_file import TokenizerFile

_NO_TEMPLATE: Final = """{% if messages or tools %}{{ raise_exception(
'vLLM makes the prompts of this model without a chat template, which an edge cannot: ask vLLM'
) }}{% endif %}"""
"""The template of a model for which vLLM has code instead, such as gpt-oss."""

_ALWAYS_GIVEN: Final = frozenset({"add_generation_prompt", "continue_final_message"})
"""The variables of a template that each request to vLLM has."""


def as_served(file: TokenizerFile, llm: AsyncLLM, args: Namespace) -> TokenizerFile:
    """Return a model's tokenizer as vLLM's server uses it. args: vLLM's command line."""
    renderer, model = llm.renderer, llm.vllm_config.model_config
    tokenizer, named = renderer.get_tokenizer(), args.chat_template
    has_code = type(renderer) is not HfRenderer or "GptOssForCausalLM" in model.architectures
    given, form = args.default_chat_template_kwargs or {}, args.chat_template_content_format
    return msgspec.structs.replace(
        file,
        template=_NO_TEMPLATE if has_code else _template(tokenizer, model, named),
        variables={name: each for name, each in given.items() if name not in _ALWAYS_GIVEN},
        takes_parts=None if form == "auto" else form == "openai",
        hides_unused_tools=args.exclude_tools_when_tool_choice_none,
        stop_tokens=sorted(_stop_tokens(renderer.get_eos_token_id(), model)),
        defaults=_defaults(model),
    )


def _template(tokenizer: Any, model: Any, named: str | None) -> str:
    """Return the template that vLLM takes, made of two if it takes another one for tools."""
    template = partial(
        resolve_chat_template, tokenizer, load_chat_template(named), model_config=model
    )
    default, with_tools = template(tools=None) or "", template(tools=[{}]) or ""
    return default if default == with_tools else joined(default, with_tools)


def _stop_tokens(eos: int | None, model: Any) -> set[int]:
    """Return what ends a turn: the tokenizer's end of text, and what the model's makers say."""
    found = model.try_get_generation_config().get("eos_token_id") or []
    return {*(found if isinstance(found, list) else [found]), eos} - {None}


def _defaults(model: Any) -> Mapping[str, float]:
    """Return the settings, with the most tokens that any answer may have."""
    found = dict(model.get_diff_sampling_param())
    own = model.generation_config in ("auto", "vllm")
    limits = model.override_generation_config if own else found
    most = limits.get("max_new_tokens" if own else "max_tokens")
    return found if most is None else {**found, "most_tokens": most}
