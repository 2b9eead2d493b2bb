"""The cases of corpus/: what each asks of which service, and what its transcript shows."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from gateway import errors, structured_outputs
from gateway.endpoints.parameters import SERVABLE
from speculation.request_names import PROMPT_LOGPROBS
from tests.gateway.scripted import (
    COUNTED,
    Body,
    ByteTokenizer,
    ReportingEngine,
    ScriptedEngine,
    client_of,
    make_app,
)
from tests.golden import Line, grown, lines_of

FOLDER = Path(__file__).parent / "corpus"
USER = {"role": "user", "content": "Hi"}
LEAST: Mapping[str, Body] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": [USER]},
    "/v1/responses": {"input": "Hi"},
    "/api/chat": {"messages": [USER]},
    "/api/generate": {"prompt": "Hi"},
    "/completion": {"prompt": "Hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "z"},
}
SERVICE: Body = {
    "context": 4096,  # tokens
    "features": [
        *SERVABLE,
        structured_outputs.NAME,
        "prediction",
        "thinking_budget",
        PROMPT_LOGPROBS,
    ],
    "defaults": {},  # the model's own settings
    "adapters": {},
    "tokenizer": {},  # fields of ByteTokenizer
    "settings": {},  # of the gateway
    "headers": {},
    "script": ["Hi", " there"],  # what the model writes; a text comes five bytes a Delta
    "finish": "stop",
    "fails": (),  # an error that the engine raises after the script: class, message, fields
    "statistics": None,
    "reports": False,  # a ReportingEngine serves it
}
"""A service with these settings gets a case, unless the case says otherwise."""


@dataclass(frozen=True)
class Case:
    line: Line
    template: str = ""
    shown: str = ""
    """The answer that the transcript shows."""

    def __str__(self) -> str:
        return str(self.line)

    @property
    def endpoint(self) -> str:
        path: str = self.line.given["endpoint"]
        return path.partition("?")[0]

    @cached_property
    def body(self) -> Body:
        given = self.line.given
        if name := given.get("client"):
            sent: Body = json.loads((FOLDER / "clients" / f"{name}.json").read_text())
            return sent
        return {**LEAST.get(self.endpoint, {}), **grown(given.get("body", {}))}

    @property
    def is_served(self) -> bool:
        return "means" in self.line.given

    def of(self, name: str) -> Any:  # noqa: ANN401 - JSON
        return self.line.given.get(name, SERVICE[name])

    def engine(self) -> ScriptedEngine:
        script, counted = self.of("script"), self.of("statistics")
        if isinstance(script, str):
            data = script.encode()
            chunks = [data[at : at + 5] for at in range(0, len(data), 5)]
        else:
            chunks = [text.encode() for text in script]
        kind = ReportingEngine if self.of("reports") else ScriptedEngine
        return kind(
            chunks,
            error(*self.of("fails")),
            frozenset(self.of("features")),
            self.of("context"),
            self.of("defaults"),
            self.of("adapters"),
            dataclasses.replace(COUNTED, **(counted or {})),
            finish=self.of("finish"),
        )

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer(**{"template": self.template, **self.of("tokenizer")})

    async def answer(self, engine: ScriptedEngine, tokenizer: ByteTokenizer) -> httpx.Response:
        app = make_app(engine, tokenizer=tokenizer, **self.of("settings"))
        path, sent = self.line.given["endpoint"], json.dumps(self.body)
        async with client_of(app, self.of("headers")) as client:
            if self.line.given.get("method") == "GET":
                return await client.get(path)
            return await client.post(path, content=sent)


def error(
    kind: str = "", message: str = "", more: Mapping[str, Any] = MappingProxyType({})
) -> Exception | None:
    """Return an error of the engine; None without one."""
    return getattr(errors, kind)(message, **more) if kind else None


CASES = [Case(line) for file in sorted(FOLDER.glob("*.jsonl")) for line in lines_of(file)]

TIMES = re.compile(r'"(?:prompt|predicted)_\w*(?:ms|per_second)":[-+.\de]+,?')
MOMENTS = re.compile(
    r'"(created|(?:created|completed|modified)_at|\w+_duration|tokens_per_s|timings/\w+_ms)"'
    r':("[^"]*"|[\d.e-]+)'
)
COUNTS = re.compile(r'"(metrics|timings)":\{(?:[^{}]|\{[^{}]*\})*\}')
IDS = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def transcripts() -> Iterator[Case]:
    for file in sorted(FOLDER.glob("transcripts/*.txt")):
        _, *found = re.split(r"^### ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for number, each in enumerate(found):
            given, _, shown = each.partition("\n")
            line = Line(file, number, json.loads(given))
            yield Case(line, "<think></think><tool_call>", shown.strip("\n"))


TRANSCRIPTS = [*transcripts()]


def normalised(text: str, *, is_counted: bool = False) -> str:
    """Return an answer without times, in which random ids are numbered. is_counted: it shows
    what was counted. A head that chunks repeat is shown once."""
    known: dict[str, str] = {}
    text = MOMENTS.sub(r'"\1":0', TIMES.sub("", text))
    text = IDS.sub(lambda id: known.setdefault(id[0], f"ID{len(known) + 1}"), text)
    text = text if is_counted else COUNTS.sub(r'"\1":...', text)
    head, choices, rest = text.partition('"choices":')
    repeated = head.rpartition("{")[2] or "\0"
    return head + choices + rest.replace(repeated, "...,")
