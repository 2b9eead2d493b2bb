"""Finds out from a chat template how its model writes tool calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from picospec.gateway.output.formats.base import Format
from picospec.gateway.output.formats.hermes import Hermes
from picospec.gateway.output.formats.llama import Llama
from picospec.gateway.output.formats.mistral import Mistral
from picospec.gateway.output.formats.pythonic import Pythonic
from picospec.gateway.output.formats.qwen_coder import QwenCoder

FormatName = Literal["hermes", "llama", "mistral", "pythonic", "qwen_coder"]

FORMATS: Final[Mapping[FormatName, Format]] = {
    "hermes": Hermes(),
    "llama": Llama(),
    "mistral": Mistral(),
    "pythonic": Pythonic(),
    "qwen_coder": QwenCoder(),
}

_SIGNS: Final[Sequence[tuple[re.Pattern[str], FormatName]]] = (
    (re.compile(r"<function="), "qwen_coder"),
    (re.compile(r"\[TOOL_CALLS\]"), "mistral"),
    (re.compile(r"<tool_call>"), "hermes"),
    (re.compile(r'<\|python_tag\|>|"parameters": dictionary'), "llama"),
    (re.compile(r"\[\w+\(\w+="), "pythonic"),
)
"""The templates of a family contain its sign. The first sign that is found decides."""


def choose(template: str) -> FormatName:
    """Return the format that a template teaches its model; by default the most common one."""
    return next((name for sign, name in _SIGNS if sign.search(template)), "hermes")
