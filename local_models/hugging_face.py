"""Tokenizers in Hugging Face's format are fetched, read and run here, and a cached
repository's commit is found.

The library `tokenizers` runs them. A directory contains tokenizer.json (the tokenizer itself),
tokenizer_config.json (the names of its tokens), chat_template.jinja (or the template in
tokenizer_config.json) and generation_config.json (the tokens that end a turn, and recommended
sampling settings).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tokenizers

from local_models.errors import CannotOpen
from local_models.template import joined
from local_models.vocabulary import Vocabulary

_TEMPLATES: Final = {
    "default": "chat_template.jinja",
    "tool_use": "additional_chat_templates/tool_use.jinja",
}
FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    *_TEMPLATES.values(),
    "generation_config.json",
    "config.json",
)

_SPACE: Final = "\u2581"
"""SentencePiece writes this for a space."""


class HuggingFaceEncoder:
    """Implements an Encoder (see tokenizer) by a tokenizer.json. Raises CannotOpen.

    eos, stop_tokens, padding: see Vocabulary. The file does not contain them.
    """

    chat_beginning: tuple[int, ...] = ()
    """Chat templates write the first token themselves."""

    def __init__(
        self,
        data: bytes,
        eos: int | None = None,
        stop_tokens: frozenset[int] = frozenset(),
        padding: int = 0,
    ) -> None:
        self._tokenizer, self._text_tokenizer = _opened(data), _opened(data)
        self._text_tokenizer.encode_special_tokens = True  # the library means: encode as text
        self._decoder = json.loads(data).get("decoder")
        self._eos = eos
        self._stop_tokens = stop_tokens
        self._padding = padding

    @cached_property
    def vocabulary(self) -> Vocabulary:
        added = self._tokenizer.get_added_tokens_decoder()
        plain = self._tokenizer.get_vocab(with_added_tokens=False)
        pieces = dict(_pieces(plain, self._decoder))
        pieces |= {token: added_token.content.encode() for token, added_token in added.items()}
        size = max(pieces, default=-1) + 1
        return Vocabulary(
            pieces=tuple(pieces.get(token, b"") for token in range(size)),
            special=frozenset(
                token for token, added_token in added.items() if added_token.special
            ),
            stop_tokens=frozenset(token for token in self._stop_tokens if token < size),
            eos=self._eos,
            padding=self._padding,
        )

    @cached_property
    def raw_beginning(self) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode("").ids)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of text alone. Other threads run meanwhile. Raises ValueError."""
        tokenizer = self._tokenizer if special else self._text_tokenizer
        with _panics_as(ValueError):
            (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids


def _opened(data: bytes) -> tokenizers.Tokenizer:
    try:
        with _panics_as(CannotOpen):
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises Exception itself
        raise CannotOpen(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _panics_as(kind: type[Exception]) -> Iterator[None]:
    """Raise `kind` for a panic inside the library, which is a BaseException."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"the tokenizer fails: {error}") from error


def directory_of(model: str, revision: str | None = None) -> Path:
    """Return the directory of a model's tokenizer. Raises CannotOpen.

    model: a directory, or the name of a repository, from which only FILES are fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # it takes 0.3 s, see hub.py

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # the library's own errors derive from these
        raise CannotOpen(f"{model}: {error}") from error


def commit_of(model: str, revision: str | None, cache: str | None) -> str | None:
    """Return the commit of a repository in the cache; None if it is not there.

    revision: a branch, a tag or a commit; None for the main branch. cache: a folder; None for
    the library's own.
    """
    from huggingface_hub import snapshot_download

    try:
        here = snapshot_download(
            model, revision=revision, cache_dir=cache, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Path(here).name


def read_directory(folder: Path) -> dict[str, Any]:
    """Return the tokenizer's data in a directory. Raises CannotOpen.

    The keys are fields of tokenizer_file.TokenizerFile.
    """
    data = _read(folder / "tokenizer.json")
    if data is None:
        raise CannotOpen(f"{folder} has no tokenizer.json")
    config = _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    named = _named_tokens({**_json(folder / "special_tokens_map.json"), **config})
    vocabulary = tokenizers.Tokenizer.from_buffer(data)
    eos = vocabulary.token_to_id(named.get("eos_token", ""))
    stops = {eos}
    for source in (generation, _json(folder / "config.json")):
        end_tokens = source.get("eos_token_id")
        stops |= set(end_tokens if isinstance(end_tokens, list) else [end_tokens])
    return {
        "data": data,
        "template": _template(folder, config),
        "named_tokens": named,
        "eos": eos,
        "stop_tokens": sorted(token for token in stops if token is not None),
        "defaults": _defaults(generation),
    }


def _pieces(
    vocabulary: Mapping[str, int], decoder: Mapping[str, Any] | None
) -> Iterator[tuple[int, bytes]]:
    """Yield the id and bytes of each token that is not an added one, by the kind of decoder."""
    steps = (decoder or {}).get("decoders") or [decoder or {}]
    kinds = {step.get("type") for step in steps}
    alphabet = _byte_alphabet()
    for text, token in vocabulary.items():
        if "ByteLevel" in kinds:
            known = all(char in alphabet for char in text)
            yield token, bytes(alphabet[char] for char in text) if known else text.encode()
        elif "ByteFallback" in kinds and len(text) == 6 and text.startswith("<0x"):
            yield token, bytes([int(text[3:5], 16)])
        else:
            yield token, text.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Map each character that byte-level BPE (GPT-2) writes for a byte to that byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): byte for byte in shown}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the chat template, joined with the one for chats with tools if there is one."""
    files = {name: _read(folder / path) for name, path in _TEMPLATES.items()}
    templates = {name: file.decode() for name, file in files.items() if file is not None}
    if not templates:
        settings = {**_json(folder / "chat_template.json"), **config}
        setting: Any = settings.get("chat_template") or ""
        several = isinstance(setting, list)
        templates = (
            {e["name"]: e["template"] for e in setting} if several else {"default": setting}
        )
    return joined(templates.get("default", ""), templates.get("tool_use"))


def _defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling settings that the model's makers recommend."""
    if generation.get("do_sample") is False:
        return {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: generation[name] for name in names if generation.get(name) is not None}


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the spellings of `bos_token` etc., which are texts or objects with a text."""
    values = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {k: v.get("content") if isinstance(v, dict) else v for k, v in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        value = json.loads(data) if data is not None else {}
    except ValueError as error:
        raise CannotOpen(f"{path}: {error}") from error
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
