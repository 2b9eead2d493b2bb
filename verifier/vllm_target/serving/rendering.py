"""Edges ask here for prompts that vLLM makes by code, where they read the model's answers as
vLLM does.

An edge shows the answer's text as its own parser reads it. So vLLM's renderer is asked only
where the parser that vLLM was given for the model reads the same: `_PARSERS` lists these.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.renderers.inputs.preprocess import extract_prompt_components
from vllm.renderers.online_renderer import OnlineRenderer

from gateway.endpoints.bodies import body_limit_bytes
from gateway.endpoints.rendering import PATH, STOPS, RenderedPrompt
from gateway.errors import InvalidRequest
from gateway.http import json_response
from gateway.json_bounds import SMALL_BYTES, check_structure
from gateway.operator_fields import without_operators
from gateway.request_body import read_body
from gateway.request_context import context_of
from gateway.turns import ThreadTurns
from local_models.tokenizer_file import TokenizerFile
from speculation.untrusted import decode_json

NO_TEMPLATE: Final = """{% if messages or tools %}{{ raise_exception(
'vLLM makes the prompts of this model without a chat template, which an edge cannot: ask vLLM'
) }}{% endif %}"""
"""A model has this template if vLLM has code instead of a template for it, as for gpt-oss."""

_RENDERED: Final = "{# vLLM makes the prompt for an edge, of: %s; answers contain: %s #}"
"""The template begins so if edges may ask for prompts: of chats with which fields beside their
messages. Like any other, it shows them the marks by which they know how answers are written."""

_FIELDS: Final = re.compile(r"for an edge, of: ([\w ]*);")

GPT_OSS: Final = "GptOssForCausalLM"
"""vLLM makes prompts of this architecture with any renderer."""


class _Answers(NamedTuple):
    """Describes answers that an edge reads as vLLM does."""

    marks: str
    tool_parser: str = ""
    """With this parser of tool calls, chats may have tools."""

    fields: Sequence[str] = (*STOPS, "continue_final_message")
    """Chats may have these fields. Of gpt-oss vLLM shows stop strings, and continues no
    message."""


_PARSERS: Final = {
    ("DeepseekV4Renderer", ""): _Answers(""),
    ("DeepseekV4Renderer", "deepseek_v4"): _Answers(
        "<think></think><\uff5cDSML\uff5ctool_calls>", "deepseek_v4"
    ),
    (GPT_OSS, "openai_gptoss"): _Answers("<|channel|>analysis", "openai", ()),
}
"""Maps vLLM's renderer, or GPT_OSS, and reasoning parser to the answers. Without a parser vLLM
shows all text as content."""

MAX_WAITING: Final = 32
"""This many large chats of one tenant may wait to be read."""


def template_of(code: str, args: Namespace) -> str:
    """Return what stands for the template of a model without one. code: the name of vLLM's
    renderer, or GPT_OSS. args: vLLM's command line."""
    parser = args.structured_outputs_config.reasoning_parser or ""
    if (answers := _PARSERS.get((code, parser))) is None:
        return NO_TEMPLATE
    calls = args.enable_auto_tool_choice and args.tool_strict_level == "auto"
    reads_calls = calls and args.tool_call_parser == answers.tool_parser
    fields = (*answers.fields, *["tools"][: bool(reads_calls)])
    return _RENDERED % (" ".join(fields), answers.marks) + NO_TEMPLATE


def is_by_code(file: TokenizerFile) -> bool:
    """Return True if vLLM makes the prompts of this tokenizer's model by code."""
    return file.template.endswith(NO_TEMPLATE)


def listed_path(file: TokenizerFile) -> dict[str, list[str]]:
    """Return the path at which edges may ask for prompts, with the fields that chats may have
    beside their messages, for `ModelFacts.served`."""
    fields = _FIELDS.search(file.template) if is_by_code(file) else None
    return {} if fields is None else {PATH: fields[1].split()}


@dataclass(frozen=True, slots=True)
class Rendering:
    """Asks the renderer of vLLM's own API, which makes the same prompt for the same chat."""

    renderer: OnlineRenderer
    reading: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, MAX_WAITING, "chats wait to be read")
    )

    async def prompt(self, request: Request) -> Response:
        """Answer with the RenderedPrompt of a chat. Raises InvalidRequest for a chat that vLLM
        refuses, or whose prompt is more than tokens; the errors of `read_body`."""
        context, model = context_of(request), self.renderer.model_config
        context.tenant.check_room(context.clock())
        body = await read_body(request, body_limit_bytes(model.max_model_len))
        read = partial(_chat, body)
        small = len(body) <= SMALL_BYTES
        chat = read() if small else await self.reading.run(context.tenant, read)
        try:
            result: Any = await self.renderer.render_chat(chat)
        except Exception as error:  # vLLM's code raises what it likes for a chat it cannot show
            raise InvalidRequest.of("messages", f"vLLM refuses: {error}") from error
        if isinstance(result, ErrorResponse):
            raise InvalidRequest.of("messages", f"vLLM refuses: {result.error.message}")
        _, prompts = result
        parts = [extract_prompt_components(model, each) for each in prompts]
        if len(prompts) != 1 or not parts[0].token_ids or "mm_kwargs" in prompts[0]:
            raise InvalidRequest.of("messages", "the prompt is not one of tokens alone")
        return json_response(RenderedPrompt(list(parts[0].token_ids)))


def _chat(body: bytes) -> ChatCompletionRequest:
    """Read an untrusted body. Raises InvalidRequest."""
    check_structure(body)
    try:
        return ChatCompletionRequest.model_validate(decode_json(without_operators(body), dict))
    except ValueError as error:
        raise InvalidRequest(f"the chat cannot be read: {error}") from error
