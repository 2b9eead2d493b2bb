"""Messages get the form that a template takes: contents, and the roles that it knows."""

from __future__ import annotations

import pytest

from picospec.models.template import ChatTemplate, shaped
from picospec.models.tokenizer import Tokenizer
from tests.models.byte_model import ByteModel

PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
EMPTY = {"type": "text", "text": ""}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("content", "text", "parts"),
    [
        ("a", "a", PARTS[:1]),
        (PARTS, "a\nb", PARTS),
        ([EMPTY, *PARTS], "a\nb", [EMPTY, *PARTS]),
        ("", "", [EMPTY]),
        ([], "", []),
        (None, "", []),
    ],
)
def test_a_content_is_a_text_or_parts(content: object, text: str, parts: object) -> None:
    message = {"role": "user", "content": content}

    assert shaped([message], "", takes_parts=False) == [{"role": "user", "content": text}]
    assert shaped([message], "", takes_parts=True) == [{"role": "user", "content": parts}]


def test_a_tools_result_is_a_text_for_every_template() -> None:
    result = {"role": "tool", "content": [EMPTY, *PARTS]}

    assert shaped([result], "", takes_parts=True)[0]["content"] == "\na\nb"
    assert shaped([result], "", takes_parts=False)[0]["content"] == "a\nb"


def test_a_template_that_wants_system_messages_first_gets_them_as_one() -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('first') }}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    chat = [{"role": "system", "content": "a"}, USER, {"role": "system", "content": "b"}]
    tokenizer = Tokenizer(ByteModel(), ChatTemplate(strict, {}))

    assert bytes(tokenizer.chat(chat)) == b"system:a\n\nb;user:hi;"
    with pytest.raises(ValueError, match="refuses: no"):
        Tokenizer(ByteModel(), ChatTemplate("{{ raise_exception('no') }}", {})).chat(chat)


def test_developers_are_one_system_message_for_a_template_without_them() -> None:
    first = {"role": "system", "content": PARTS}
    late = {"role": "developer", "content": "c", "name": "d"}
    chat = [first, USER, late, {"role": "system", "content": ""}]

    merged = shaped(chat, "", takes_parts=False)

    assert merged == [{"role": "system", "content": "a\nb\n\nc"}, USER]
    assert [m["role"] for m in shaped(chat, "'developer'", takes_parts=False)] == [
        m["role"] for m in chat
    ]
    assert shaped([late, USER], "", takes_parts=False) == [late | {"role": "system"}, USER]
    assert shaped([USER, first], "", takes_parts=True) == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        first,
    ]
