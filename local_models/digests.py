"""Checks names from another machine, such as digests, before they become paths.

Code that makes a path of such a name must pass it through a function of this module. A returned
name stays inside the folder that it is joined to, and can be shown in a terminal.
"""

from __future__ import annotations

import re
from typing import Final

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TOKENIZER: Final = re.compile(r"[0-9a-f]{32}")
_REPOSITORY: Final = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}")
_WHEEL: Final = re.compile(r"\w[\w.]*(-\w[\w.!+]*){2,5}\.whl")

_MAX_PART_BYTES: Final = 200
_MAX_PATH_BYTES: Final = 1000
"""A file's name and its path have at most this many bytes. Linux allows 255 and 4,096, and the
store adds to both."""


def sha256_name(text: str) -> str:
    """Return the text if it is a SHA-256 in hex digits. Raises ValueError."""
    return _matching(_SHA256, text, "a SHA-256 has 64 hex digits")


def is_sha256(text: str) -> bool:
    """Return True if a text is a SHA-256 in hex digits."""
    return _SHA256.fullmatch(text) is not None


def tokenizer_name(text: str) -> str:
    """Return the text if it has the form of a tokenizer's digest (see TokenizerFile). Raises
    ValueError."""
    return _matching(_TOKENIZER, text, "the digest of a tokenizer has 32 hex digits")


def repository_name(text: str) -> str:
    """Return the text if it is OWNER/NAME, or NAME. Raises ValueError."""
    return _matching(_REPOSITORY, text, "a repository is called OWNER/NAME")


def wheel_name(text: str) -> str:
    """Return the text if it is the name of a wheel (PEP 427). Raises ValueError."""
    return _matching(_WHEEL, text, "a wheel is called NAME-VERSION-PYTHON-ABI-PLATFORM.whl")


def file_name(text: str) -> str:
    """Return the text if it is a file name without a folder. Raises ValueError."""
    if "/" in file_path(text):
        raise ValueError(f"a file's name has no folder; this is {text[:80]!r}")
    return text


def file_path(text: str) -> str:
    """Return the text if it is a relative path inside a repository. Raises ValueError."""
    parts = text.split("/")
    fits = len(text.encode()) <= _MAX_PATH_BYTES and all(
        len(part.encode()) <= _MAX_PART_BYTES for part in parts
    )
    if {"", ".", ".."} & set(parts) or not fits or not text.isprintable() or "\\" in text:
        raise ValueError(f"a file has a relative path without dots; this is {text[:80]!r}")
    return text


def _matching(form: re.Pattern[str], text: str, rule: str) -> str:
    if form.fullmatch(text) is None:
        raise ValueError(f"{rule}; this is {text[:80]!r}")
    return text
