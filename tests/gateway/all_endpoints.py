"""Requests by all endpoints, whose answers have choices and log-probabilities."""

from __future__ import annotations

from tests.gateway.scripted import MODEL, Body

HI = [{"role": "user", "content": "Hi"}]
WATCHED = {"stream_options": {"include_speculation": True}, "background": True}
INCLUDED = {"input": "Hi", "include": ["message.output_text.logprobs"]}
Requests = dict[str, tuple[str, Body]]


def requests(choices: int, top: int) -> tuple[Requests, Requests]:
    """Return requests with the likeliest `top` of each token, by all endpoints, and such as run
    in the background."""
    logprobs, many = {"logprobs": True, "top_logprobs": top}, {"messages": HI, "n": choices}
    ollama = {"model": MODEL, **logprobs}
    response = {**INCLUDED, "top_logprobs": top}
    asked = {
        "chat": ("/v1/chat/completions", {**many, **logprobs}),
        "completions": ("/v1/completions", {"prompt": "Hi", "n": choices, "logprobs": top}),
        "responses": ("/v1/responses", response),
        "messages": ("/v1/messages", {"messages": HI, "max_tokens": 9000}),
        "completion": ("/completion", {"prompt": "Hi"}),
        "ollama chat": ("/api/chat", {**ollama, "messages": HI}),
        "ollama text": ("/api/generate", {**ollama, "prompt": "Hi"}),
    }
    apart = {
        "responses": ("/v1/responses", {**response, "background": True}),
        "chat": ("/v1/chat/completions", {**many, **logprobs, **WATCHED}),
    }
    return asked, apart
