"""Finds how vLLM's own server renders a chat, and its default settings.

They are packed with the tokenizer, so that an edge makes the same prompt.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.hf import (
    HfRenderer,
    resolve_chat_template,
    resolve_chat_template_content_format,
)
from vllm.v1.engine.async_llm import AsyncLLM

from local_models.template import joined
from local_models.tokenizer_file import TokenizerFile
from verifier.vllm_target.serving.rendering import GPT_OSS, template_of

_A_TOOL: Final[list[dict[str, Any]]] = [{}]
_ALWAYS_GIVEN: Final = frozenset({"add_generation_prompt", "continue_final_message"})
"""Each request to vLLM sets these variables of a template itself."""


def as_served(file: TokenizerFile, llm: AsyncLLM, args: Namespace) -> TokenizerFile:
    """Return a model's tokenizer as vLLM's server uses it. args: vLLM's command line."""
    renderer, model = llm.renderer, llm.vllm_config.model_config
    template_variables = args.default_chat_template_kwargs or {}
    return msgspec.structs.replace(
        file,
        **_template(renderer, model, args),
        variables={
            name: each for name, each in template_variables.items() if name not in _ALWAYS_GIVEN
        },
        hides_unused_tools=args.exclude_tools_when_tool_choice_none,
        stop_tokens=sorted(_stop_tokens(renderer.get_eos_token_id(), model)),
        defaults=_defaults(model),
    )


def _template(renderer: Any, model: Any, args: Namespace) -> dict[str, Any]:
    """Return the template and whether it takes message parts. If vLLM uses another template for
    tools, the two are joined into one."""
    code = GPT_OSS if GPT_OSS in model.architectures else type(renderer).__name__
    if code != HfRenderer.__name__:
        return {"template": template_of(code, args)}
    named, tokenizer = load_chat_template(args.chat_template), renderer.get_tokenizer()
    default, with_tools = (
        resolve_chat_template(tokenizer, named, tools, model_config=model) or ""
        for tools in (None, _A_TOOL)
    )
    form = resolve_chat_template_content_format(
        named, None, args.chat_template_content_format, tokenizer, model_config=model
    )
    one = default if default == with_tools else joined(default, with_tools)
    return {"template": one, "takes_parts": form == "openai"}


def _stop_tokens(eos: int | None, model: Any) -> set[int]:
    """Return the tokens that end a turn, by the tokenizer and by the model's makers."""
    end_tokens = model.try_get_generation_config().get("eos_token_id")
    named = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    return {token for token in (*named, eos) if token is not None}


def _defaults(model: Any) -> Mapping[str, float]:
    """Return the default settings, with the limit on an answer's tokens if there is one."""
    parameters = model.get_diff_sampling_param().items()
    defaults = {name: value for name, value in parameters if not isinstance(value, bool)}
    own = model.generation_config in ("auto", "vllm")
    limits = model.override_generation_config if own else defaults
    most = limits.get("max_new_tokens" if own else "max_tokens")
    return defaults if most is None else {**defaults, "most_tokens": most}
