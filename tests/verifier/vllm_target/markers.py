"""A tiny model whose vocabulary has DeepSeek V4's markers, and flags of vLLM's parsers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

BAR, SPACE = "\uff5c", "\u2581"
MARKERS = (
    f"<{BAR}begin{SPACE}of{SPACE}sentence{BAR}>",
    f"<{BAR}end{SPACE}of{SPACE}sentence{BAR}>",
    f"<{BAR}User{BAR}>",
    f"<{BAR}Assistant{BAR}>",
    "<think>",
    "</think>",
    f"{BAR}DSML{BAR}",
)


def flags(reasoning_parser: str, tool_parser: str | None = None, strict: str = "auto") -> Any:
    """Return the command line of vLLM with these parsers."""
    return Namespace(
        structured_outputs_config=Namespace(reasoning_parser=reasoning_parser),
        tool_call_parser=tool_parser,
        enable_auto_tool_choice=tool_parser is not None,
        tool_strict_level=strict,
    )


def model_with_markers(folder: Path) -> Path:
    from tests.verifier.vllm_target.v2 import tiny

    tiny.make(folder, padding=len(MARKERS))
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens(list(MARKERS))
    tokenizer.save(file)
    return folder
