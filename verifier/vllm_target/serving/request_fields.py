"""Lists the fields of requests that vLLM's own API serves, and the content parts that the model
takes: an edge proxies a request with one that it cannot serve itself."""

from __future__ import annotations

from typing import Final, get_args

from vllm.entrypoints.anthropic.protocol import (
    AnthropicContentBlock,
    AnthropicMessagesRequest,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.renderers.chat_utils import MM_PARSER_MAP
from vllm.v1.engine.async_llm import AsyncLLM

from gateway.operator_fields import OPERATORS
from local_models.tokenizer_file import TokenizerFile
from verifier.vllm_target.serving.rendering import is_by_code, listed_path

REQUESTS: Final = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": AnthropicMessagesRequest,
}
_NO_CLIENTS: Final = OPERATORS.union(
    # These serve other paths than the one to which the request is sent.
    ("mm_payload", "return_mm_kwargs", "return_token_offsets"),
    # An edge keeps responses itself, and vLLM knows no tenants.
    ("background", "previous_response_id"),
)


def fields_of(
    file: TokenizerFile, *, renders: bool = False, scores_ids: bool = True
) -> dict[str, list[str]]:
    """Return the fields of requests to each path of vLLM's API. file: the model's tokenizer, as
    vLLM's server uses it. A field that vLLM would ignore is left out. renders: True if paths
    exist that only render a prompt (--enable-scale-out); they have no lists of their own.
    scores_ids: see Charging."""
    shows_documents = is_by_code(file) or "documents" in file.template
    unseen = _NO_CLIENTS if shows_documents else {*_NO_CLIENTS, "documents"}
    unseen = unseen if scores_ids else {*unseen, "logprob_token_ids"}
    listed = {path: sorted({*of.model_fields} - unseen) for path, of in REQUESTS.items()}
    paths = [f"{path}/render" for path in REQUESTS] if renders else []
    return listed | {path: [] for path in paths} | listed_path(file)


_IN_RESPONSES: Final = {"input_text", "input_image", "output_text", "refusal"}
PARTS: Final = {
    "/v1/chat/completions": MM_PARSER_MAP.keys() - {"image_pil"},  # which JSON cannot express
    "/v1/responses": MM_PARSER_MAP.keys() & _IN_RESPONSES,
    "/v1/messages": {*get_args(AnthropicContentBlock.model_fields["type"].annotation)},
}
"""Some model may take content parts of these types."""


def parts_of(file: TokenizerFile, llm: AsyncLLM) -> dict[str, list[str]]:
    """Return the types of content parts that the model takes, by path. vLLM would refuse any
    other, or leave it out. file: the model's tokenizer, as vLLM's server uses it."""
    model, processor = llm.vllm_config.model_config, llm.renderer.mm_processor
    limits = processor.info.allowed_mm_limits if processor else {}
    taken = {medium for medium, most in limits.items() if most}
    if "vision_chunk" in taken:
        taken |= {"image", "video"}
    if processor and model.multimodal_config.enable_mm_embeds:
        taken |= {f"{medium}_embeds" for medium in limits}
    taken |= {"prompt_embeds"} if model.enable_prompt_embeds else set()
    shows = not file.takes_parts or "tool_reference" in file.template
    taken |= {"tool_reference"} if shows else set()
    return {
        path: sorted(kind for kind in kinds if _needed_for(kind) in {None, *taken})
        for path, kinds in PARTS.items()
    }


def _needed_for(kind: str) -> str | None:
    """Return what a model must take to take parts of a type; None for a text, which any does:
    `image` for `image_url`."""
    if kind.endswith("_embeds") or kind == "tool_reference":
        return kind
    return next((each for each in ("image", "audio", "video") if each in kind), None)
