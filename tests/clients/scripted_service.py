"""A target that answers by a script: `python -m tests.clients.scripted_service PORT`.

Only the model is scripted: the chat template and the tokens are Qwen2.5-Coder's own. What it
answers depends on what it finds in the prompt, as a model's answer would.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator

import uvicorn

from gateway.app import create_app
from gateway.endpoints.services import Services, one_model
from gateway.hosting.settings import GatewaySettings
from gateway.ports import Delta, Facts, Job, Statistics
from local_models.store import open_store
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import tokenizer_file
from speculation.messages import Totals

MODEL = "scripted"
EDIT = '<tool_call>\n{"name": "%s", "arguments": {"%s": "%s"}}\n</tool_call>'
SED = "sed -i 's/hello/good evening/' hello.py && echo edited"
SCRIPT = (
    ("<tool_response>\nedited", "hello.py greets in the evening now."),
    ('"name": "Bash"', EDIT % ("Bash", "command", SED)),
    ('"name": "bash"', EDIT % ("bash", "command", SED)),
    ("Process exited with code 0", "hello.py greets in the evening now."),
    (
        "exec_command",
        '<tool_call>\n{"name": "exec_command", "arguments": {"cmd":'
        " \"sed -i 's/hello/good evening/' hello.py\"}}\n</tool_call>",
    ),
    ("SEARCH/REPLACE", "hello.py\n```\ndef greet():\n    print('good evening')\n```\n"),
    ("entire content", "hello.py\n```\ndef greet():\n    print('good evening')\n```\n"),
    ("\n69.8\n", "It is 69.8 degrees Fahrenheit in Paris."),
    (
        "<tool_response>\n21\n",
        '<tool_call>\n{"name": "to_fahrenheit", "arguments": {"celsius": 21}}\n</tool_call>',
    ),
    (
        "Fahrenheit",
        'Let me look.\n<tool_call>\n{"name": "temperature_of", "arguments": {"city": "Paris"}}'
        "\n</tool_call>",
    ),
)
"""What a prompt holds, and what is answered then; the first that fits."""


class Scripted:
    """gateway.ports.Engine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def facts(self) -> Facts:
        vocabulary = self._tokenizer.vocabulary
        size, features = len(vocabulary.pieces), frozenset({"structured_outputs"})
        return Facts(MODEL, 32768, vocabulary.stop_tokens, size, features)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        pieces = self._tokenizer.vocabulary.pieces
        prompt = b"".join(pieces[token] for token in job.prompt).decode()
        reply = next((text for key, text in SCRIPT if key in prompt), "I have no script.")
        for passes, token in enumerate(self._tokenizer.encode(reply), start=1):
            yield Delta((token,), statistics=Statistics(Totals(passes, filled=passes)))
        yield Delta((), finish="stop", statistics=Statistics())


def main(port: int) -> None:
    path = open_store(os.environ).find("qwen2.5-coder-1.5b-q8_0", "target").path
    tokenizer = tokenizer_file(path).open()

    async def source(_: str) -> Tokenizer:
        return tokenizer

    settings = GatewaySettings()
    app = create_app(Services(one_model(Scripted(tokenizer), source, settings), settings))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
