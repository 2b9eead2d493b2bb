"""Ollama's Python SDK against `URL MODEL`: what it saw, as JSON."""

from __future__ import annotations

import json
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from ollama import Client, ResponseError

QUESTION = "How many degrees Fahrenheit are there in Paris?"
GREETING = [{"role": "user", "content": "Say hello."}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHORT = {"temperature": 0, "num_predict": 24, "num_ctx": 4096}

called: list[str] = []


def temperature_of(city: str) -> str:
    """Return the temperature of a city in degrees Celsius."""
    called.append(f"temperature_of {city}")
    return "21"


def to_fahrenheit(celsius: float) -> str:
    """Convert degrees Celsius to degrees Fahrenheit."""
    called.append(f"to_fahrenheit {celsius:g}")
    return str(celsius * 9 / 5 + 32)


TOOLS = {each.__name__: each for each in (temperature_of, to_fahrenheit)}


def loop(client: Client, model: str, *, stream: bool) -> str:
    """Go on until the model calls nothing; return what it says then."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        asked = {"model": model, "messages": messages, "tools": list(TOOLS.values())}
        answer = client.chat(**asked, stream=stream, think=False)
        parts = [part.message for part in answer] if stream else [answer.message]
        calls = [call for part in parts for call in part.tool_calls or ()]
        content = "".join(part.content or "" for part in parts)
        if not calls:
            return content
        messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        for call in calls:
            result = TOOLS[call.function.name](**call.function.arguments)
            messages.append(
                {"role": "tool", "tool_name": call.function.name, "content": result}
            )


def tools(client: Client, model: str) -> dict[str, Any]:
    answers = [loop(client, model, stream=False), loop(client, model, stream=True)]
    return {"called": called, "answers": answers}


def texts(client: Client, model: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": model, "messages": GREETING, "options": SHORT}
    whole = client.chat(**asked, think=True)
    streamed = list(client.chat(**asked, think=True, stream=True))
    prompt: dict[str, Any] = {"prompt": "Say hello.", "options": SHORT}
    piecewise = list(client.generate(f"{model}:latest", **prompt, stream=True))
    people = [{"role": "user", "content": "Ada is 36 years old."}]
    person = client.chat(model, people, format=PERSON, options={"temperature": 0})
    middle = client.generate(model, "def add(a, b):\n    return ", suffix="\n", options=SHORT)
    return {
        "texts": [
            whole.message.content,
            "".join(part.message.content or "" for part in streamed),
            client.generate(model, **prompt).response,
            "".join(part.response for part in piecewise),
        ],
        "thoughts": [
            whole.message.thinking,
            "".join(part.message.thinking or "" for part in streamed),
            "".join(part.thinking or "" for part in piecewise),
        ],
        "tokens": [whole.eval_count, streamed[-1].eval_count, piecewise[-1].eval_count],
        "prompt_ns": whole.prompt_eval_duration,
        "middle": middle.response,
        "person": json.loads(person.message.content or ""),
        "loaded": client.generate(model).done_reason,
    }


def status(ask: Callable[[], object]) -> int:
    try:
        ask()
    except ResponseError as error:
        return error.status_code
    return 200


def models(client: Client, model: str) -> dict[str, Any]:
    shown = client.show(model)
    lengths = (n for name, n in shown.modelinfo.items() if name.endswith("context_length"))
    return {
        "names": [each.model for each in client.list().models],
        "running": [each.model for each in client.ps().models],
        "capabilities": shown.capabilities,
        "context": next(lengths),
        "statuses": [
            status(lambda: client.pull(model)),
            status(lambda: client.chat("none", GREETING)),
        ],
    }


if __name__ == "__main__":
    url, name = sys.argv[1:]
    found = [step(Client(host=url), name) for step in (tools, texts, models)]
    sys.stdout.write(json.dumps(dict(ChainMap(*found))) + "\n")
