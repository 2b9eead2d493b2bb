"""llama-server's clients get its fields, made of the tokens that any other door gives."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.llama_server import LineLimits, limited
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.stream import ChoiceStream
from tests.gateway.scripted import (
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    events_of,
    make_app,
    meaning,
    refusal,
)

PROMPT = {"prompt": "Hello!!"}
LLAMA_VIM: Body = {
    "id_slot": 0,
    "model": "",
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "input_extra": [
        {"text": "import math\n", "time": [1, 2], "filename": "a.py"},
        {"text": "x = 1\n", "time": [3, 4], "filename": "b.py"},
    ],
    "prompt": "    return ",
    "n_predict": 128,
    "n_indent": 4,
    "stop": [],
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated"],
}
"""A request of llama.vim's shape."""

WARMING = LLAMA_VIM | {
    "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "n_indent": 0,
    "samplers": [], "temperature": 0.0, "t_max_predict_ms": 1, "response_fields": [""],
}  # fmt: skip


def engine(*script: bytes) -> ScriptedEngine:
    return ScriptedEngine(script or (b"Hi", b" there"), context_tokens=4096)


async def test_llama_vim_gets_what_it_asks_for() -> None:
    serving = engine(b"a + b", b"\n    # sum\nprint()")

    answer = await ask(LLAMA_VIM, serving, path="/infill")

    shown = answer.json()
    assert shown["content"] == "a + b\n    # sum"
    assert shown.keys() == set(LLAMA_VIM["response_fields"])
    ignored = {"cache_prompt", "id_slot", "input_extra.time", "samplers", "t_max_prompt_ms"}
    assert set(answer.headers["x-picospec-ignored"].split(", ")) == ignored
    (job,) = serving.jobs
    extra = "[a.py:import math\n][b.py:x = 1\n]"
    fill = "<def add(a, b):\n    return |\n\nprint(add(1, 2))\n>"
    assert bytes(job.prompt).decode() == extra + fill
    assert (job.max_tokens, job.sampling.top_k, job.sampling.top_p) == (128, 40, 0.99)


async def test_llama_vim_has_a_prompt_read_without_an_answer() -> None:
    serving = engine()

    answer = await ask(WARMING, serving, path="/infill")
    whole = await ask(WARMING | {"response_fields": []}, engine(), path="/infill")

    assert (answer.status_code, answer.json()) == (200, {})
    assert serving.jobs[0].max_tokens == 1
    assert whole.json()["content"] == ""


@pytest.mark.parametrize("path", ["/completion", "/completions"])
async def test_a_completion_is_one_of_v1_completions(path: str) -> None:
    fields = {"temperature": 0.5, "top_k": 3, "seed": 7, "stop": ["x"], "min_p": 0.1}
    native, openai = PROMPT | fields | {"n_predict": 9}, PROMPT | fields | {"max_tokens": 9}

    shown = (await ask(native, engine(), path=path)).json()
    expected = (await ask(openai, engine())).json()

    assert await meaning(native, path=path) == await meaning(openai)
    assert shown["content"] == expected["choices"][0]["text"]
    assert shown["tokens_predicted"] == expected["usage"]["completion_tokens"]
    assert shown["tokens_evaluated"] == expected["usage"]["prompt_tokens"]
    assert shown["tokens_cached"] == expected["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("body", "stop_type", "word"),
    [({}, "eos", ""), ({"stop": [" th"]}, "word", " th")],
)
async def test_a_stream_is_pieces_and_an_end_that_says_why(
    body: Body, stop_type: str, word: str
) -> None:
    stream = await ask(PROMPT | body | {"stream": True}, engine(), path="/completion")
    whole = (await ask(PROMPT | body, engine(), path="/completion")).json()

    *pieces, last = events_of(stream.text)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert not any(piece["stop"] for piece in pieces)
    assert (last["stop"], last["stop_type"], last["stopping_word"]) == (True, stop_type, word)
    assert {name: last[name] for name in last.keys() - {"content", "timings"}} == {
        name: whole[name] for name in whole.keys() - {"content", "timings"}
    }
    assert last["timings"].keys() == whole["timings"].keys()


async def test_several_prompts_have_an_object_each() -> None:
    answer = await ask({"prompt": ["a", "b"]}, engine(), path="/completion")

    assert [each["index"] for each in answer.json()] == [0, 1]
    assert {each["content"] for each in answer.json()} == {"Hi there"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/completion", {}, "prompt"),
        ("/completion", PROMPT | {"n_predict": -2}, "n_predict"),
        ("/completion", PROMPT | {"n_probs": 3}, "n_probs"),
        ("/completion", PROMPT | {"samplers": ["top_k"]}, "samplers"),
        ("/infill", LLAMA_VIM | {"samplers": ["top_k"]}, "samplers"),
        ("/infill", LLAMA_VIM | {"input_extra": [{"filename": "a"}]}, "input_extra.0.text"),
        ("/infill", LLAMA_VIM | {"input_prefix": "x" * 99_999}, "input_prefix"),
    ],
)
async def test_what_cannot_be_served_is_named(path: str, body: Body, field: str) -> None:
    assert await refusal(body, engine(), path=path) == (400, field)


async def test_paths_without_v1_are_the_same() -> None:
    app = make_app(engine(), api_keys=["k"])
    async with client_of(app, {"authorization": "Bearer k"}) as client:
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/chat/completions", json=chat)
        models = [(await client.get(path)).json() for path in ("/models", "/v1/models")]
        props = (await client.get("/props")).json()
    async with client_of(app) as stranger:
        statuses = [
            (await stranger.get(path)).status_code
            for path in ("/ping", "/v1/health", "/models", "/props")
        ]

    assert answer.json()["choices"][0]["message"]["content"] == "Hi there"
    assert models[0] == models[1]
    assert props["default_generation_settings"] == {"n_ctx": 4096}
    assert props["model_alias"] == MODEL
    assert statuses == [200, 200, 401, 401]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "a"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "a"}]}),
        ("/api/generate", {"prompt": "a"}),
    ],
)
async def test_what_only_streams_of_openais_doors_tell_is_named(path: str, body: Body) -> None:
    options = {"include_usage": True, "include_speculation": True}
    answer = await ask({**body, "stream": True, "stream_options": options}, path=path)

    ignored = answer.headers["x-picospec-ignored"].split(", ")
    named = {name for name in ignored if name.startswith("stream_options")}
    assert named == {"stream_options.include_usage", "stream_options.include_speculation"}


# The limits by lines depend on the text and the time, not on how the text comes in pieces.

PIECES = st.lists(st.text("a \t\n", max_size=4), max_size=12)


def kept(text: str, indent: int) -> str:
    """Return the first line, and those after it up to one that is less indented."""
    first, *lines = text.split("\n")
    shown = [first]
    for at, line in enumerate(lines):
        bare = line.lstrip(" \t")
        is_open = not bare and at == len(lines) - 1
        if len(line) - len(bare) < indent and not is_open:
            break
        shown.append(line)
    return "\n".join(shown)


async def streamed(
    pieces: list[str], limits: LineLimits, seconds: float = 0
) -> list[TextDelta]:
    closed = asyncio.Event()

    async def stream() -> ChoiceStream:
        try:
            for piece in pieces:
                yield 0, TextDelta(piece, 1)
            yield 0, TextDelta("", 1, finish="stop")
        finally:
            closed.set()

    now_s = iter(range(1000))
    clock = lambda: next(now_s) * seconds  # noqa: E731
    deltas = []
    async for _, delta in limited(stream(), limits, clock):
        assert closed.is_set() == (delta.finish is not None)
        deltas.append(delta)
    return deltas


@given(PIECES, st.integers(0, 3))
async def test_the_text_ends_before_the_first_line_that_is_less_indented(
    pieces: list[str], indent: int
) -> None:
    deltas = await streamed(pieces, LineLimits(indent=indent, max_s=0))

    text, whole = "".join(delta.text for delta in deltas), "".join(pieces)
    assert text == kept(whole, indent)
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish == ("stop" if text == whole else "length")


@given(PIECES, st.integers(1, 12))
async def test_when_the_time_is_up_the_text_ends_if_it_has_a_line(
    pieces: list[str], max_s: int
) -> None:
    deltas = await streamed(pieces, LineLimits(indent=0, max_s=max_s), seconds=1)

    late = [i for i in range(len(pieces)) if i > max_s and "\n" in "".join(pieces[: i + 1])]
    shown = pieces[: late[0] + 1] if late else pieces
    assert "".join(delta.text for delta in deltas) == "".join(shown)
    assert deltas[-1].finish == ("length" if late else "stop")
