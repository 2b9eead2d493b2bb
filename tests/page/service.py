"""A service with a scripted engine, for the page: `python -m tests.page.service PORT [KEY]`.

What the user writes last chooses the answer: see ANSWERS.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.app import create_app
from gateway.errors import Unavailable
from gateway.ports import Delta, Facts, Job, Statistics, Tokenizer
from gateway.responses import json_response
from gateway.settings import GatewaySettings
from gateway.speculation import Chain, LinkUse, Pass
from tests.gateway.scripted import END, ByteTokenizer

MODEL = "bytes-1"
MARKDOWN = """\
## Merging two sorted lists

Walk over **both** lists at once, and always take the *smaller* head. Each element is looked
at once, so this takes `O(n + m)` time.

```python
def merge(left: list[int], right: list[int]) -> list[int]:
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]
```

| case | result |
|---|---|
| both empty | `[]` |
| one empty | the other |

1. Equal elements keep their order.
2. Neither list is changed.

See [the documentation](https://docs.python.org/3/library/heapq.html) of `heapq.merge`.
"""
HOSTILE = """\
<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">
<svg onload="window.hacked = 3"><iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>
[a](javascript:window.hacked=5) [b](JaVaScRiPt&colon;window.hacked=6) [c](data:text/html,<script>)
![d](https://evil.example/pixel.png) ![e" onerror="window.hacked=7](x)
<a href="javascript:window.hacked=8">f</a> <style>body{display:none}</style>
<form action="https://evil.example"><input name=q><button>send</button></form>
<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=9></style></mglyph></table></mtext></math>
<details open ontoggle=window.hacked=10> <body onload=window.hacked=11> <base href="https://evil.example/">
<meta http-equiv="refresh" content="0;url=https://evil.example/"> <object data="x"></object>
```"><img src=x onerror=window.hacked=12>
code
```
Still here.
"""


@dataclass
class PageEngine:
    """Answers in words, with a draft model that is right about three words in four."""

    row_s: float = 0.02
    down: bool = False
    jobs: list[Job] = field(default_factory=list)

    async def facts(self) -> Facts:
        if self.down:
            raise Unavailable("the verifier is away")
        features = frozenset({"presence_penalty"})
        return Facts(MODEL, 4_000_000, frozenset({END}), END + 1, features)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        self.jobs.append(job)
        asked = bytes(job.prompt).decode("utf-8", "replace").rstrip().rpartition("u:")[2]
        position, accepted = len(job.prompt), 0
        for number, words in enumerate(_passes(text_of(asked))):
            if self.down and number > 3:
                raise Unavailable("the verifier cannot be reached: connection refused")
            tokens = tuple("".join(words).encode())
            drafted = tuple("".join(words[:-1]).encode())
            origin = "lookup" if number % 5 == 4 else "draft"
            last = (len(tokens) - len(drafted)) * ("target",)
            wrong = number % 4 == 3
            events = (
                Chain(1, position, len(tokens), False, (*drafted, *b" and"), ""),
                Chain(1, position, 4, True, tuple(b" and"), "") if wrong else None,
                Pass(
                    position,
                    len(drafted) + 4 * wrong + 1,
                    len(drafted),
                    len(tokens),
                    "recovered" if wrong else "bonus" if drafted else "fill",
                    18.0,
                    6.0 if number % 3 == 0 else 0.0,
                    30.0,
                    self.row_s * 250,
                ),
                LinkUse(24.5, 3 * position, 9 * position, 0, 0) if number % 6 == 0 else None,
            )
            position, accepted = position + len(tokens), accepted + len(drafted)
            yield Delta(
                tokens,
                statistics=Statistics(number + 1, number + 1, accepted + number, accepted),
                origins=(*(origin,) * len(drafted), *last) if job.watched else None,
                events=tuple(filter(None, events)) if job.watched else (),
            )
            await asyncio.sleep(self.row_s)
        done = Statistics(number + 1, number + 1, accepted + number, accepted)
        yield Delta((END,), finish="stop", statistics=done, origins=("target",))


def text_of(asked: str) -> str:
    """Return the answer to what the user asked."""
    if "hostile" in asked:
        return HOSTILE
    if "long" in asked:
        return "".join(f"Line {n} goes on and on.\n\n" for n in range(400))
    if "think" in asked:
        return "<think>Let me see.</think>The answer is 42."
    return MARKDOWN


def _passes(text: str) -> Iterator[list[str]]:
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1].rstrip(" ")
    at = 0
    for number in range(len(words)):
        size = 1 + (number * 7 + number // 3) % 6
        if words[at : at + size]:
            yield words[at : at + size]
        at += size


def page_app(engine: PageEngine, **settings: object) -> FastAPI:
    async def source() -> Tokenizer:
        return ByteTokenizer()

    app = create_app(engine, source, GatewaySettings.model_validate(settings))

    async def status(_: Request) -> Response:
        return json_response({"role": "edge", "model": MODEL, "ready": not engine.down})

    app.add_route("/status", status)
    return app


if __name__ == "__main__":
    keys = {"api_keys": sys.argv[2:]} if sys.argv[2:] else {}
    uvicorn.run(page_app(PageEngine(), **keys), port=int(sys.argv[1]), log_level="warning")
