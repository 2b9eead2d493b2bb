"""What a template can show, and how it wants what it is shown."""

from __future__ import annotations

import pytest

from picospec.models.tokenizing.chat_template import ChatTemplate
from picospec.models.tokenizing.tokenizer import Tokenizer
from tests.models.test_tokenizer import ByteModel

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
]
WRITES = (
    "{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %};{% endfor %}"
)
ADDS = WRITES.replace("{{ m.content }}", "{{ '' + m.content }}")
FORBIDS = WRITES.replace(
    "{{ m.content }}",
    "{{ raise_exception('empty') if m.content is none else m.content }}",
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [(WRITES, "hi;f;"), (ADDS, "hi;f;"), (FORBIDS, "hi;f;")],
)
def test_content_that_is_null_is_an_empty_text(template: str, expected: str) -> None:
    tokens = Tokenizer(ByteModel(), ChatTemplate(template, {})).chat(CHAT)

    assert bytes(tokens).decode() == expected


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        ("{{ messages[0].content }}", False),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", True),
        ("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}", True),
        ("{{ messages[0].tools }}", False),
    ],
)
def test_a_template_takes_tools_if_it_names_them(template: str, takes: bool) -> None:
    tokenizer = Tokenizer(ByteModel(), ChatTemplate(template, {}))

    assert tokenizer.takes_tools is takes


def test_a_model_without_a_template_takes_no_tools() -> None:
    assert Tokenizer(ByteModel(), None).takes_tools is False
