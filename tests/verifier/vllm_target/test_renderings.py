"""Chats become the text and the tokens that the installed `transformers` makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.tokenizing.chat_template import ChatTemplate
from picospec.models.tokenizing.tokenizer_file import tokenizer_file
from tests.models.chats import FAMILIES, TEMPLATES, Chat, chats
from tests.models.make_renderings import TODAY, rendered

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def ours(name: str, chat: Chat) -> str | None:
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(text, FAMILIES[name].named, now=lambda: TODAY)
    try:
        return template.render(chat.messages, chat.tools, chat.options)
    except ValueError:
        return None


NOT_AS_TRANSFORMERS = ("forged", "developer")
"""A spelt special token stays text here; of developers vLLM makes a system message."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_chat_renders_as_the_installed_transformers_renders_it(name: str) -> None:
    pytest.importorskip("transformers")
    asked = chats(FAMILIES[name])

    assert {each: ours(name, chat) for each, chat in asked.items()} == {
        each: rendered(name, chat) for each, chat in asked.items()
    }


def test_smollm2s_chats_have_the_tokens_that_transformers_gives_them(directory: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer = tokenizer_file(directory).open()
    asked = chats(FAMILIES["smollm2"])

    compared = 0
    for name, chat in asked.items():
        if name.startswith(NOT_AS_TRANSFORMERS) or rendered("smollm2", chat) is None:
            continue
        options = {"add_generation_prompt": True} | chat.options
        expected = theirs.apply_chat_template(chat.messages, chat.tools or None, **options)
        tokens = tokenizer.chat(chat.messages, tools=chat.tools, options=chat.options)
        assert tokens == expected["input_ids"], name
        compared += 1
    assert compared > 10
