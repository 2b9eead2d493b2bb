"""Serves the fake target with a tokenizer of words: `python serve_words.py PORT`."""

from __future__ import annotations

import json
import os
import sys

import msgspec

from gateway.hosting.server import serve
from local_models.tokenizer_file import TokenizerFile
from tests.verifier.fake_target import FACTS, FakeTarget, V
from verifier.app import build
from verifier.settings import load

WORDS = {f"w{token}": token for token in range(V)}
LEVEL = {"type": "WordLevel", "vocab": WORDS, "unk_token": "w0"}
SPLIT = {"type": "WhitespaceSplit"}
MADE = {"version": "1.0", "added_tokens": [], "pre_tokenizer": SPLIT, "model": LEVEL}
FILE = TokenizerFile("huggingface", json.dumps(MADE).encode())


class Words(FakeTarget):
    def __init__(self) -> None:
        super().__init__()
        self._facts = msgspec.structs.replace(FACTS, vocabulary=FILE.digest)
        self._tokenizer, self.packed_tokenizer = FILE.open(), FILE.pack()


if __name__ == "__main__":
    settings = load(None, os.environ, {"port": int(sys.argv[1]), "drain_timeout_s": 0.0})
    serve(settings, lambda: build(settings, lambda metrics: Words()))
