"""Names of files that come from another machine, such as a digest, before they become paths.

Whoever makes a path of such a name passes it through a function of this module: no other text
than hex digits gets into a path.
"""

from __future__ import annotations

import re
from typing import Final

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TOKENIZER: Final = re.compile(r"[0-9a-f]{32}")


def sha256_name(text: str) -> str:
    """Return the text if it is a SHA-256 in hex digits. Raises ValueError."""
    return _matching(_SHA256, text, "a SHA-256 has 64 hex digits")


def tokenizer_name(text: str) -> str:
    """Return the text if it may be a tokenizer's digest, see TokenizerFile. Raises
    ValueError."""
    return _matching(_TOKENIZER, text, "the digest of a tokenizer has 32 hex digits")


def _matching(form: re.Pattern[str], text: str, rule: str) -> str:
    if form.fullmatch(text) is None:
        raise ValueError(f"{rule}; this is {text[:80]!r}")
    return text
