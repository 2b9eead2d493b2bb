"""OpenAI's Agents SDK against `URL MODEL DOOR`: two tools to their end, streamed or not.

DOOR is `chat` or `responses`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

called: list[str] = []


@function_tool
def temperature_of(city: str) -> str:
    """Return the temperature of a city in degrees Celsius."""
    called.append(f"temperature_of {city}")
    return "21"


@function_tool
def to_fahrenheit(celsius: float) -> str:
    """Convert degrees Celsius to degrees Fahrenheit."""
    called.append(f"to_fahrenheit {celsius:g}")
    return str(celsius * 9 / 5 + 32)


ENDPOINTS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}


async def main(url: str, model: str, endpoint: str) -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    agent = Agent(
        name="weather",
        instructions="Use the tools, one after the other.",
        model=ENDPOINTS[endpoint](model=model, openai_client=client),
        model_settings=ModelSettings(temperature=0, include_usage=True),
        tools=[temperature_of, to_fahrenheit],
    )
    question = "How many degrees Fahrenheit are there in Paris?"
    whole = await Runner.run(agent, question, max_turns=6, run_config=RunConfig())
    streamed = Runner.run_streamed(agent, question, max_turns=6)
    events = [event.type async for event in streamed.stream_events()]
    usage = whole.context_wrapper.usage
    found = {
        "called": called,
        "answers": [whole.final_output, streamed.final_output],
        "events": sorted(set(events)),
        "tokens": usage.total_tokens,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
