"""Chats become the tokens of the rendered template, and messages cannot forge markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.markers import Markers
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
from tests.local_models.conftest import BOS, END, MARKERS, START, ByteModel

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = CHATML, *, bos: bool = False) -> Tokenizer:
    model = ByteModel(raw_beginning=(BOS,) if bos else ())
    return Tokenizer(model, template and ChatTemplate(template, {"bos_token": "<s>"}))


def user(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


@given(
    st.sets(st.text("<|ab>", min_size=1, max_size=6), max_size=8),
    st.text("<|ab>x", max_size=60),
    st.integers(1, 9),
)
def test_markers_are_the_longest_at_each_place_whatever_the_pieces_of_the_search(
    markers: set[str], text: str, chunk: int
) -> None:
    longest_first = "|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or "(?!)"
    expected = [piece for piece in re.split(f"({longest_first})", text) if piece]

    with pytest.MonkeyPatch.context() as small:
        small.setattr("local_models.markers.CHUNK", chunk)
        found = list(Markers(markers).split(text))

    assert [piece for piece, _ in found] == expected
    assert all(is_marker == (piece in markers) for piece, is_marker in found)


STRIPPED = "{% for m in messages %}{{ m.content | trim }};{% endfor %}"
OPTION = {"continue_final_message": True}


@pytest.mark.parametrize(
    ("template", "ends"), [(CHATML, "assistant\n <s>é "), (STRIPPED, "hi;<s>é")]
)
def test_an_answer_may_go_on_with_the_last_message(template: str, ends: str) -> None:
    said = {"role": "assistant", "content": " <s>é "}

    tokens = tokenizer(template).chat([*user("hi"), said], options=OPTION)

    assert bytes(token for token in tokens if token < START).decode().endswith(ends)
    assert tokens[-1] != END


def test_a_template_that_hides_the_last_message_cannot_go_on_with_it() -> None:
    with pytest.raises(ValueError, match="does not show"):
        tokenizer("{{ messages[0].content }}").chat(user("hi") * 2, options=OPTION)


def test_a_marker_in_a_role_stays_text() -> None:
    tokens = tokenizer().chat([{"role": "user<|im_end|>", "content": "hi"}])

    assert tokens.count(END) == 1


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=4))
def test_a_chat_without_markers_has_the_tokens_of_the_whole_string(texts: list[str]) -> None:
    model = ByteModel()
    whole = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts)

    tokens = tokenizer().chat([{"role": "user", "content": text} for text in texts])

    assert tokens == model.tokenize(f"{whole}<|im_start|>assistant\n", True)


@given(
    st.lists(st.sampled_from([*MARKERS, "<", "|im_end|>", "1", "0" * 16, "é", " "]), max_size=8)
)
def test_no_message_makes_more_markers_than_the_template(parts: list[str]) -> None:
    text = "".join(parts)

    tokens = tokenizer().chat(user(text))

    assert [t for t in tokens if t > 255] == [START, END, START]
    assert bytes(t for t in tokens if t < 256) == f"user\n{text}\nassistant\n".encode()


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ raise_exception('no system message') }}", id="raises"),
        pytest.param("{{ messages.__class__.__mro__ }}", id="looks-behind-the-list"),
        pytest.param("{{ messages.append(1) }}", id="changes-the-list"),
        pytest.param("{{ messages[7].content }}", id="reads-beyond-the-list"),
        pytest.param("{{ 1 / 0 }}", id="divides-by-zero"),
        pytest.param("{{ messages | dictsort }}", id="takes-a-list-for-a-mapping"),
        pytest.param(
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="calls-itself-without-end"
        ),
    ],
)
def test_a_template_that_misbehaves_is_a_value_error(template: str) -> None:
    with pytest.raises(ValueError, match="refuses"):
        tokenizer(template).chat(user("hi"))


def test_a_template_that_cannot_be_read_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        ChatTemplate("{% for %}", {})


def test_a_model_without_a_template_takes_raw_prompts_only() -> None:
    assert tokenizer(None).encode("x<|im_end|>") == [*b"x", END]
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer(None).chat(user("hi"))


def test_tools_and_options_reach_the_template_and_forge_no_marker() -> None:
    template = "{{ tools | tojson }}{{ mood }}<|im_end|>"
    tools = [{"name<s>": ["<|im_end|>", 1, None, True]}]

    tokens = tokenizer(template).chat(user("x"), tools=tools, options={"mood": "<s>!"})

    shown = b'[{"name<s>": ["<|im_end|>", 1, null, true]}]<s>!'
    assert tokens == [*shown, END]


def test_bos_comes_first_exactly_once() -> None:
    plain = tokenizer("x", bos=True)
    rendered = tokenizer("{{ bos_token }}x", bos=True)

    assert plain.chat(user("hi")) == [BOS, *b"x"]
    assert rendered.chat(user("hi")) == [BOS, *b"x"]
    assert plain.encode("x") == [BOS, *b"x"]


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


@pytest.mark.parametrize("template", [WRITES, ADDS, FORBIDS])
def test_content_that_is_null_is_an_empty_text(template: str) -> None:
    assert bytes(tokenizer(template).chat(CHAT)) == b"hi;f;"


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        ("{{ messages[0].content }}", False),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", True),
        ("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}", True),
        ("{{ messages[0].tools }}", False),
        (None, False),
    ],
)
def test_a_template_takes_tools_if_it_names_them(template: str | None, takes: bool) -> None:
    assert tokenizer(template).takes_tools is takes


# A model fills in between two texts by its own markers, wherever its vocabulary has them.

PREFIX, SUFFIX, MIDDLE = 256, 257, 258
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
INFILL_BOS = 999


def infill_tokenizer(*markers: str, begins: tuple[int, ...] = ()) -> Tokenizer:
    return Tokenizer(ByteModel(markers, begins), None)


@pytest.mark.parametrize(
    "markers",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        STARCODER,
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        (" <PRE>", " <SUF>", " <MID>"),
    ],
)
def test_prefix_suffix_and_middle_are_marked(markers: tuple[str, ...]) -> None:
    model, other = infill_tokenizer(*markers), infill_tokenizer(*markers, begins=(INFILL_BOS,))

    assert model.infill("ab", "c") == [PREFIX, *b"ab", SUFFIX, *b"c", MIDDLE]
    assert other.infill("", "") == [INFILL_BOS, PREFIX, SUFFIX, MIDDLE]


def test_codestral_reads_the_suffix_first() -> None:
    tokens = infill_tokenizer("[PREFIX]", "[SUFFIX]").infill("ab", "c")

    assert tokens == [SUFFIX, *b"c", PREFIX, *b"ab"]


def test_a_marker_in_a_text_stays_text() -> None:
    marker = "<|im_end|>"

    tokens = infill_tokenizer(*STARCODER, marker).infill(marker, "")

    assert tokens == [PREFIX, *marker.encode(), SUFFIX, MIDDLE]


@pytest.mark.parametrize("markers", [(), STARCODER[:2]])
def test_a_model_without_markers_cannot(markers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no tokens for filling in"):
        infill_tokenizer(*markers).infill("a", "b")


SNIPPET = [260, *b"a.py\nA", 260, *b"file\n"]


@pytest.mark.parametrize(
    ("repository", "file", "before"),
    [
        ("<|repo_name|>", "<|file_sep|>", [259, *b"repository\n", *SNIPPET]),
        ("<repo_name>", "<file_sep>", [259, *b"repository\n", *SNIPPET]),
        ("<reponame>", "<filename>", [259, *b"repository\n", *SNIPPET]),
        ("<|other|>", "<|file_separator|>", SNIPPET),
        ("<|other|>", "<|another|>", [*b"a.py\nA\n\n"]),
    ],
)
def test_snippets_of_other_files_come_before_as_the_model_knows_them(
    repository: str, file: str, before: list[int]
) -> None:
    model = infill_tokenizer(*STARCODER, repository, file)

    tokens = model.infill("ab", "c", [{"filename": "a.py", "text": "A"}], 100)

    assert tokens == [*before, *model.infill("ab", "c")]


def test_the_first_snippets_are_left_out_where_not_all_fit() -> None:
    model = infill_tokenizer(*STARCODER, "<|file_sep|>")
    snippets = [{"filename": name, "text": "text"} for name in "abc"]

    for most in range(50):
        tokens = model.infill("ab", "c", snippets, most)
        kept = tokens.count(259) - 1

        assert len(tokens) <= most or tokens == model.infill("ab", "c")
        if kept > 0:
            assert tokens == model.infill("ab", "c", snippets[3 - kept :], 100)
    assert kept == 3


# Templates of many families render as `transformers` renders them, byte for byte.


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
