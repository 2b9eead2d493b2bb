"""Bodies just under each bound, of every kind that an endpoint reads, with a name and a
path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from edge_agent.proxy import DIRECT, HELD_BYTES
from gateway.endpoints.bodies import MIN_LIMIT_BYTES
from gateway.endpoints.parameters import MAX_BIASES
from gateway.endpoints.request import MAX_STOPS
from gateway.json_bounds import (
    MAX_CONTAINERS,
    MAX_STRINGS,
    MAX_VALUES,
    SMALL_BYTES,
    count_structure,
)
from gateway.json_schemas import MAX_BYTES
from gateway.prompt_reader import BYTES_PER_TOKEN

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

HERE = "@"
"""Where the items of a body are."""

LINES = Path(__file__).with_name("bodies.tsv").read_text(encoding="utf-8").splitlines()
KINDS = {kind: columns for kind, *columns in (line.split("\t") for line in LINES)}
"""Paths, bodies and their items. A number stands for %d, another one in each item."""


Json = dict[str, object]
Body = tuple[str, str, Json | bytes]

HI = [{"role": "user", "content": "a"}]
MANY, LONG = int(0.9 * MAX_CONTAINERS), int(0.9 * MAX_STRINGS)

UNITS = {
    "letters": "a", "spaces": " ", "line breaks": "\n", "angles": "<", "zeros": "0",
    "near markers": "<|im_star", "markers": "<|im_end|>", "quotes": '"', "words": "keeper ",
    "accents": "\u0301", "wide": "\U0001f600", "braces": "{{", "mixed": "aB1 \u4e2d.",
}  # fmt: skip
"""Texts repeat them: each is hard for a regular expression, a tokenizer or a template."""

FEW = {name: UNITS[name] for name in ("line breaks", "markers", "quotes")}
"""These suffice for an endpoint that reads texts as another does."""

DEEP: Json = {"type": "string"}
for _ in range(120):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


def properties(count: int, value: object = ("string",)) -> Json:
    value = {"type": value[0]} if isinstance(value, tuple) else value
    return {"type": "object", "properties": {f"p{i}": value for i in range(count)}}


DEFINITIONS = {f"d{i}": {"type": "string", "description": "a" * 40} for i in range(600)}
SCHEMAS: dict[str, Json] = {
    "many properties": properties(4_000),
    "few properties": properties(60),
    "definitions": {**properties(1_000), "$defs": DEFINITIONS},
    "few definitions": {**properties(100), "$defs": {"d": {"enum": ["a" * 1_200]}}},
    "an enum": properties(1, {"enum": [f"{i}" for i in range(14_000)]}),
    "nesting": DEEP,
    "what is required": {**properties(2_000), "required": [f"p{i}" for i in range(2_000)]},
    "a pattern": properties(1, {"type": "string", "pattern": "(a|b)*" * 10_000}),
    "a multiple": properties(1, {"type": "integer", "multipleOf": 1_000_003}),
    "alternatives": properties(1, {"anyOf": [{"const": f"{i}"} for i in range(6_000)]}),
}
"""Each is near 128 KiB, takes long to compile, or grows where it is copied."""


def body_of(kind: str, *, admitted: bool) -> bytes:
    """Return a body of as many bytes as the service takes. admitted: of as many values, too."""
    _, body, item = KINDS[kind]
    comma = "" if kind in ("deep nesting", "escaped quotes", "a long text") else ","
    width = len((item % 10**6 if "%" in item else item) + comma)
    count = (MIN_LIMIT_BYTES - len(body) + len(HERE)) // width
    if admitted:
        *_, each = count_structure(f"{item},".encode())
        each_in_all = ((MAX_CONTAINERS, each.containers), (MAX_STRINGS, each.strings))
        most = ((limit - 16) // taken for limit, taken in each_in_all if taken)
        count = min(count, *most, MAX_VALUES)
    items = (item % (10**6 + i) for i in range(count)) if "%" in item else [item] * count
    return body.replace(HERE, comma.join(items)).encode()


def text_of(unit: str, size: int) -> str:
    """Return a text whose JSON has this many bytes."""
    return unit * (size // (len(json.dumps(unit)) - 2))


def chat(**more: object) -> Json:
    return {"max_tokens": 1, "messages": HI, **more}


def function(parameters: object, name: str = "f", **more: object) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def custom(definition: str, syntax: str) -> Json:
    form = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    return {"type": "custom", "custom": {"name": "f", "format": form}}


def calling(*arguments: str) -> Json:
    calls = [{"function": {"name": "f", "arguments": each}} for each in arguments]
    return chat(messages=[*HI, {"role": "assistant", "tool_calls": calls}])


def listed(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


def nested(begin: str, end: str, depth: int) -> str:
    return begin * depth + end * depth


def _texts(size: int, tokens: int) -> Iterator[Body]:
    """Yield bodies with one long text: where it becomes a prompt, and where it does not."""
    for name, unit in UNITS.items():
        text = text_of(unit, size - 512)[: BYTES_PER_TOKEN * tokens - 64]
        yield f"chat: {name}", CHAT, chat(messages=[{"role": "user", "content": text}])
        yield f"prompt: {name}", TEXT, {"max_tokens": 1, "prompt": text}
    for name, unit in FEW.items():
        long = text_of(unit, size - 512)
        text = long[: BYTES_PER_TOKEN * tokens - 64]
        said = [{"role": "user", "content": text}]
        yield f"tool: {name}", CHAT, chat(tools=[function({}, description=text)])
        yield f"salt: {name}", CHAT, chat(cache_salt=long)
        yield f"unknown field: {name}", CHAT, chat(unknown=long)
        yield f"prediction: {name}", CHAT, chat(prediction={"type": "content", "content": long})
        infill = {"n_predict": 1, "input_prefix": text, "input_suffix": ""}
        yield f"infill: {name}", "/infill", infill
        yield f"tokenize: {name}", "/tokenize", {"content": text, "with_pieces": True}
        item = {"max_output_tokens": 1, "input": text, "store": True}
        yield f"item: {name}", "/v1/responses", item
        yield f"turn: {name}", "/v1/messages", {"max_tokens": 1, "messages": said}
        asked = {"messages": said, "options": {"num_predict": 1}}
        yield f"Ollama: {name}", "/api/chat", asked
        alone = {"prompt": text, "options": {"num_predict": 1}}
        yield f"Ollama's text: {name}", "/api/generate", alone
        yield f"native: {name}", "/completion", {"n_predict": 1, "prompt": text}
        yield f"counted: {name}", "/v1/responses/input_tokens", {"input": text}
        yield f"counted turn: {name}", "/v1/messages/count_tokens", {"messages": said}
        lasting = {**item, "background": True, "stream": True}
        yield f"background: {name}", "/v1/responses", lasting


def _ids(tokens: int, longest: int) -> Iterator[Body]:
    """Yield bodies with ids of the token with the most bytes."""
    ids: Json = {"max_tokens": 1, "prompt": [longest] * (tokens - 16)}
    yield "long tokens", TEXT, ids
    yield "long tokens, echoed", TEXT, {**ids, "echo": True}
    yield "long tokens, 8 choices", TEXT, {**ids, "n": 8}
    yield "long tokens, 8 choices, echoed", TEXT, {**ids, "n": 8, "echo": True}
    yield "16 prompts", TEXT, {"max_tokens": 1, "prompt": [[longest] * (tokens // 16)] * 16}
    yield "detokenize", "/detokenize", {"tokens": ids["prompt"]}


def _constraints(size: int) -> Iterator[Body]:
    for name, unit in FEW.items():
        text = text_of(unit, MAX_BYTES - 64)
        yield f"regex: {name}", CHAT, chat(structured_outputs={"regex": text})
        rules = {"grammar": text}
        yield f"grammar: {name}", CHAT, chat(structured_outputs=rules)
        more = chat(structured_outputs=rules, tools=[function({})])
        yield f"grammar and tools: {name}", CHAT, more
        yield f"custom tool: {name}", CHAT, chat(tools=[custom(text, "lark")])
        yield f"regex of a tool: {name}", CHAT, chat(tools=[custom(text, "regex")])
        one = function(properties(1, {"enum": [text]}), strict=True)
        yield f"enum: {name}", CHAT, chat(tools=[one])
    choices = [f"{i:0120}" for i in range(1_000)]
    yield "choices", CHAT, chat(structured_outputs={"choice": choices})
    yield "schema in a text", CHAT, chat(guided_json=json.dumps({"enum": [*range(20_000)]}))
    for name, schema in SCHEMAS.items():
        named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        yield f"schema of {name}", CHAT, chat(response_format=named)
        count = max(1, min(128, (size - 256) // (len(json.dumps(schema)) + 96)))
        tools = [function(schema, f"f{i}", strict=True) for i in range(count)]
        yield f"strict tools of {name}", CHAT, chat(tools=tools, tool_choice="required")
        asked = {"messages": HI, "tools": tools, "options": {"num_predict": 1}}
        yield f"Ollama's tools of {name}", "/api/chat", asked
        flat = [{"type": "function", **each["function"]} for each in tools]  # type: ignore[dict-item]
        item = {"max_output_tokens": 1, "input": "a", "tools": flat}
        yield f"tools of a response of {name}", "/v1/responses", item
        given = [{"name": f"f{i}", "input_schema": schema} for i in range(count)]
        yield f"tools of a message of {name}", "/v1/messages", chat(tools=given)


def _values(size: int) -> Iterator[Body]:
    flat = listed("[]", 20_000)
    yield "arguments: flat", CHAT, calling(*[flat] * (size // (len(flat) + 200)))
    yield "arguments: arrays", CHAT, calling(listed("[]", MANY))
    yield "arguments: strings", CHAT, calling(listed('"a"', LONG))
    yield "arguments: small", CHAT, calling(*[listed("[]", SMALL_BYTES // 3 - 400)] * 4)
    yield "arguments: nested", CHAT, calling(*[nested("[", "]", 100)] * (size // 400))
    yield "arguments: deep", CHAT, calling(nested("[", "]", (size - 600) // 2))
    yield "arguments: deep objects", CHAT, calling(nested('{"a":', "1}", 30_000))
    yield "biases", CHAT, chat(logit_bias={str(i): 1 for i in range(MAX_BIASES)})
    yield "stops", CHAT, chat(stop=["a" * 511 + chr(65 + i) for i in range(MAX_STOPS)])
    yield "deep", CHAT, b'{"messages":%b}' % nested("[", "]", (size - 64) // 2).encode()
    variables = {"a": json.loads(nested("[", "]", 150)), **{f"a{i}": i for i in range(40_000)}}
    yield "variables of the template", CHAT, chat(chat_template_kwargs=variables)


def bodies(size: int, tokens: int, longest: int) -> Iterator[Body]:
    """Yield bodies of up to `size` bytes for a context of `tokens`. longest: the token with the
    most bytes."""
    for kind, (path, *_) in KINDS.items():
        yield kind, path, body_of(kind, admitted=True)
        yield f"too many: {kind}", path, body_of(kind, admitted=False)
    yield from _texts(size, tokens)
    yield from _ids(tokens, longest)
    yield from _constraints(size)
    yield from _values(size)


def proxied(size: int) -> Iterator[Body]:
    """Yield bodies that an edge passes on: of up to `size` bytes, or of as many as it holds to
    see who answers them."""
    for name, unit in FEW.items():
        said, large = (
            [{"role": "user", "content": text_of(unit, most - 512)}]
            for most in (size, HELD_BYTES)
        )
        yield f"direct: {name}", DIRECT, chat(messages=said, seed=1)
        yield f"superset: {name}", CHAT, chat(messages=said, bad_words=["a"])
        yield f"large: {name}", CHAT, chat(messages=large)
        image = {"type": "image_url", "image_url": {"url": large[0]["content"]}}
        yield f"image: {name}", CHAT, chat(messages=[{"role": "user", "content": [image]}])
    many = [{"role": "user", "content": "a"}] * (LONG // 4)
    yield "superset: messages", CHAT, chat(messages=many, bad_words=["a"])
    many_tools = [function(properties(30), f"f{i}") for i in range(128)]
    yield "superset: tools", CHAT, chat(tools=many_tools, bad_words=["a"])


REASONING = {"type": "reasoning", "summary": []}
"""Such an item costs no token of the prompt."""


def kept(size: int, previous: str | None) -> Json:
    """Return a response that is kept; a few of them make a history that is just admitted."""
    items = [*[REASONING] * (size // 300), {"role": "user", "content": "a"}]
    return {"max_output_tokens": 1, "input": items, "previous_response_id": previous}


def following(size: int, previous: str) -> Iterator[Body]:
    for name, given in {"a word": "a", "items": [REASONING] * (size // 60)}.items():
        body = {"max_output_tokens": 1, "input": given, "previous_response_id": previous}
        yield f"history and {name}", "/v1/responses", body
        yield f"history and {name}, counted", "/v1/responses/input_tokens", body
