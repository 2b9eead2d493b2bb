"""A call as models write it, in each format that has a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gateway.output.output_format import FORMATS, FormatName

NAMES: Sequence[FormatName] = sorted(FORMATS.keys() - {"dsml", "harmony"})
"""These two have no grammar, and are compared with vLLM's parsers. In Harmony a text without a
channel is a header, and DeepSeek V4 closes no call that is cut."""

CALLS: Mapping[FormatName, str] = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>',
    "llama": '<|python_tag|>{"name": "%s", "parameters": %s}',
    "mistral": "[TOOL_CALLS]%s[ARGS]%s",
    "pythonic": "[%s(**%s)]",
    "qwen_coder": "<tool_call>\n<function=%s>%s</function>\n</tool_call>",
}
"""What a model writes for a name and arguments."""


def written(name: FormatName, city: str, days: int) -> str:
    """Return the call weather(city, days) as a model writes it."""
    if name == "pythonic":
        return f"[weather(city={city!r}, days={days})]"
    if name == "qwen_coder":
        values = (
            f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n{days}\n</parameter>"
        )
        return CALLS[name] % ("weather", f"\n{values}\n")
    return CALLS[name] % ("weather", json.dumps({"city": city, "days": days}))
