"""Anthropic's SDK against `URL MODEL`: a loop of two tools, thinking, counts, models, errors.

Every event of a stream, and every message, is checked by the types of the SDK.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
from anthropic import beta_tool
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from anthropic.types.beta.message_create_params import MessageCreateParamsBase
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
QUESTION: Any = [{"role": "user", "content": "How many degrees Fahrenheit are there in Paris?"}]
THINKING: Any = {"type": "adaptive"}

called: list[str] = []


class Person(BaseModel):
    name: str
    age: int


@beta_tool
def temperature_of(city: str) -> str:
    """Return the temperature of a city in degrees Celsius."""
    called.append(f"temperature_of {city}")
    return "21"


@beta_tool
def to_fahrenheit(celsius: float) -> str:
    """Convert degrees Celsius to degrees Fahrenheit."""
    called.append(f"to_fahrenheit {celsius:g}")
    return str(celsius * 9 / 5 + 32)


TOOLS: Any = [temperature_of, to_fahrenheit]


def loop(client: anthropic.Anthropic, asked: dict[str, Any], *, stream: bool) -> str:
    runner: Any = client.beta.messages.tool_runner(tools=TOOLS, stream=stream, **asked)
    for turn in runner:
        last = turn.get_final_message() if stream else turn
    return "".join(block.text for block in last.content if block.type == "text")


def checked_events(client: anthropic.Anthropic, asked: dict[str, Any]) -> list[str]:
    tools = [tool.to_dict() for tool in TOOLS]
    with client.messages.with_streaming_response.create(
        stream=True, tools=tools, **asked
    ) as answer:
        data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    events = [EVENT.validate_json(each) for each in data if json.loads(each)["type"] != "ping"]
    return [event.type for event in events]


def refused(client: anthropic.Anthropic, **asked: Any) -> list[str]:  # noqa: ANN401
    try:
        client.messages.create(**asked)
    except anthropic.APIStatusError as error:
        return [type(error).__name__, error.body["error"]["message"]]  # type: ignore[index, call-overload]
    return []


def main(url: str, model: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    asked = {"model": model, "max_tokens": 2000, "messages": QUESTION, "thinking": THINKING}
    with client.messages.stream(
        tools=[tool.to_dict() for tool in TOOLS],
        **asked,  # type: ignore[arg-type]
    ) as stream:
        kinds = {event.type for event in stream}
        first = Message.model_validate(stream.get_final_message().to_dict(), strict=True)
    person = client.messages.parse(
        model=model,
        max_tokens=64,
        messages=[{"role": "user", "content": "Ada is 36 years old."}],
        output_format=Person,
    )
    found = {
        "answers": [loop(client, asked, stream=stream) for stream in (False, True)],
        "called": called,
        "blocks": [block.type for block in first.content],
        "reason": first.stop_reason,
        "kinds": sorted(kinds),
        "events": checked_events(client, asked),
        "person": person.parsed_output.model_dump() if person.parsed_output else None,
        "counted": client.messages.count_tokens(model=model, messages=QUESTION).input_tokens,
        "models": [ModelInfo.model_validate(m.to_dict()).id for m in client.models.list()],
        "fields": sorted(MessageCreateParamsBase.__annotations__),
        "unknown": refused(client, **{**asked, "model": "no-such-model"}),
        "long": refused(
            client,
            model=model,
            max_tokens=9,
            messages=[{"role": "user", "content": "a" * 40000}],
        ),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
