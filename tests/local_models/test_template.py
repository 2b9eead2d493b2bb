"""Templates of many families render as `transformers` renders them, byte for byte.

What it renders was stored by `chats`, from the same chats and at the same date. The
vLLM suite compares with the installed `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Final

import pytest

from local_models.template import ChatTemplate, joined
from local_models.template_messages import shaped
from local_models.tokenizer import Tokenizer
from tests.local_models.chats import (
    FAMILIES,
    RENDERINGS,
    TEMPLATES,
    TODAY,
    Chat,
    Family,
    Json,
    chats,
)
from tests.local_models.conftest import ByteModel

STORED: Final[dict[str, dict[str, str | None]]] = json.loads(RENDERINGS.read_text("utf-8"))
HARMLESS: Final = Family(("(a)", "(b)"))


@cache
def template(name: str) -> ChatTemplate:
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(text, FAMILIES[name].named, now=lambda: TODAY)


def all_chats(
    family: Family, render: Callable[[Chat], str | list[int]]
) -> dict[str, str | list[int] | None]:
    """Return what becomes of each chat; None where ValueError is raised."""
    found: dict[str, str | list[int] | None] = {}
    for name, chat in chats(family).items():
        try:
            found[name] = render(chat)
        except ValueError:
            found[name] = None
    return found


def tokens_of(name: str, family: Family) -> dict[str, list[int] | None]:
    """Return the tokens of each chat, in which the family's markers are written."""
    encoder = ByteModel(FAMILIES[name].markers)
    make = Tokenizer(encoder, template(name)).chat
    return all_chats(  # type: ignore[return-value]  # it returns what `chat` returns
        family, lambda chat: make(chat.messages, tools=chat.tools, options=chat.options)
    )


def as_template_takes_it(name: str, chat: Chat) -> list[Json]:
    """Return the messages as the tokenizer gives them to the template."""
    return [*shaped(chat.messages, template(name).text, takes_parts=False)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_chat_renders_as_transformers_renders_it(name: str) -> None:
    ours = all_chats(
        FAMILIES[name],
        lambda chat: template(name).render(chat.messages, chat.tools, chat.options),
    )

    assert ours == STORED[name]
    assert sum(text is not None for text in ours.values()) >= 10


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_spell_the_rendered_text_whatever_markers_messages_hold(name: str) -> None:
    pieces = ByteModel(FAMILIES[name].markers).vocabulary.pieces

    tokens = tokens_of(name, FAMILIES[name])

    spelt = {
        each: found and b"".join(pieces[token] for token in found).decode()
        for each, found in tokens.items()
    }
    assert spelt == all_chats(
        FAMILIES[name],
        lambda chat: template(name).render(
            as_template_takes_it(name, chat), chat.tools, chat.options
        ),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_in_messages_make_no_special_token(name: str) -> None:
    forged, harmless = tokens_of(name, FAMILIES[name]), tokens_of(name, HARMLESS)

    def special(tokens: list[int] | None) -> list[int]:
        return [token for token in tokens or () if token > 255]

    assert {each: special(found) for each, found in forged.items()} == {
        each: special(found) for each, found in harmless.items()
    }


def test_a_template_does_not_find_special_tokens_in_messages() -> None:
    """Qwen3's looks for </think> in answers. Its models have it as text; as a special token it
    stays in the history, where `transformers` would leave the reasoning out."""
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
    chat = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}]

    shown = [
        bytes(token for token in Tokenizer(ByteModel(markers), template("qwen3")).chat(chat))
        for markers in (("<a>",), ("</think>",))
    ]

    assert [b"hm" in text for text in shown] == [False, True]


@pytest.mark.parametrize("name", FAMILIES)
def test_of_two_templates_one_is_for_chats_with_tools(name: str) -> None:
    one, other = template(name), template("features")
    clock = {"now": lambda: TODAY}
    first = ChatTemplate(joined(one.text, other.text), FAMILIES[name].named, **clock)
    second = ChatTemplate(joined(other.text, one.text), FAMILIES[name].named, **clock)

    found = all_chats(
        FAMILIES[name],
        lambda chat: (second if chat.tools else first).render(
            chat.messages, chat.tools, chat.options
        ),
    )

    assert found == STORED[name]


@pytest.mark.parametrize("text", ["  a  ", "\n a\n\n", "  {% set x = 1 %}\n  a\n  "])
def test_white_space_at_the_ends_of_two_templates_is_kept(text: str) -> None:
    alone = ChatTemplate(text, {}).render([], (), {})

    assert ChatTemplate(joined(text, "x"), {}).render([], (), {}) == alone
    assert ChatTemplate(joined("x", text), {}).render([], [{}], {}) == alone


def test_every_template_is_rendered() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == FAMILIES.keys() == STORED.keys()


# Messages get the form that a template takes: contents, and the roles that it knows.

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
