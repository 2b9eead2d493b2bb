"""A mask is what brute force finds, and a function of the output alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.constraints import MAX_BYTES, Constraint
from local_models.errors import GrammarFailed, InvalidGrammar
from local_models.grammars import Grammar
from local_models.guidance import MatcherTokens, Tokenize, grammar_text, make_matcher
from tests.local_models.grammars.small import (
    STOP,
    TAG,
    TOKENS,
    VOCABULARY,
    V,
    allowed,
    bytes_of,
    generated,
    greedy,
)

TEXTS = st.lists(st.text('ab{"e\u00e9', min_size=1, max_size=8), min_size=1, max_size=6)

Json = dict[str, Any]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}


def is_person(value: Json) -> bool:
    return (
        list(value) == ["name", "age", "tags"]
        and len(value["name"]) <= 6
        and type(value["age"]) is int
        and 0 <= value["age"] <= 120
        and len(value["tags"]) <= 2
        and set(value["tags"]) <= {"a", "bb"}
    )


def is_node(value: Json) -> bool:
    below = value.get("below", [])
    known = set(value) <= {"value", "below"} and type(value["value"]) is bool
    return known and len(below) <= 1 and all(map(is_node, below))


def choice(texts: list[str]) -> Grammar:
    return Grammar(TOKENS, grammar_text("choice", texts))


def of(kind: str, value: object) -> Grammar:
    return Grammar(TOKENS, grammar_text(kind, json.dumps(value) if kind == "json" else value))


def brute_force(texts: list[str], output: list[int]) -> set[int]:
    """Return the tokens after which one of the texts can still be written."""
    done, wanted = bytes_of(output), [text.encode() for text in texts]
    follow = {t for t in range(STOP) if any(w.startswith(done + bytes_of([t])) for w in wanted)}
    return follow | ({STOP} if done in wanted else set())


@given(TEXTS, st.randoms(use_true_random=False))
def test_a_mask_is_what_trying_every_token_finds_but_for_what_is_forced(
    texts: list[str], chance: Random
) -> None:
    state, output = choice(texts).begin(), list[int]()
    while output[-1:] != [STOP]:
        expected = brute_force(texts, output)

        found = allowed(state, output)

        if (forced := state.forced()) is None:
            assert found == expected
        else:
            assert found == {forced} <= expected
            assert STOP not in expected
        output.append(chance.choice(sorted(found)))


@given(TEXTS, st.randoms(use_true_random=False))
def test_what_is_forced_is_the_tokenizers_own_writing(texts: list[str], chance: Random) -> None:
    """Where one text is left, its tokens are those of the whole text from there on."""
    output = generated(choice([texts[0]]), chance.choice)

    assert output == [*greedy(texts[0]), STOP]


@pytest.mark.parametrize(
    ("schema", "is_right"), [(PERSON, is_person), (TREE, is_node)], ids=["person", "tree"]
)
@pytest.mark.parametrize("seed", range(5))
def test_an_answer_that_ends_satisfies_its_schema(
    schema: dict[str, Any], is_right: Callable[[Json], bool], seed: int
) -> None:
    chance = Random(seed)

    def hurried(tokens: list[int]) -> int:
        """Whitespace between values may go on for ever."""
        text = [t for t in tokens if bytes_of([t]).strip() and t < STOP]
        return chance.choice(text or tokens)

    output = generated(of("json", schema), hurried)

    assert output[-1] == STOP
    assert is_right(json.loads(bytes_of(output)))


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", "[ab]{3}(12|\u20ac)", "[ab]{3}(12|\u20ac)"),
        ("regex", 'a/"b\n', 'a/"b\n'),
        ("grammar", 'start: "a" b\nb: "b" | "(" b ")"', r"a\(*b\)*"),
        ("grammar", 'root ::= "a" [0-9]', "a[0-9]"),
        ("json_object", True, r"(?s)\{.*\}"),
    ],
)
def test_every_kind_of_constraint_is_kept_to(kind: str, value: object, pattern: str) -> None:
    output = generated(of(kind, value), lambda tokens: max(tokens, key=_endings), 40)

    assert re.fullmatch(pattern, bytes_of(output).decode())


def _endings(token: int) -> tuple[bool, bool]:
    return token == STOP, VOCABULARY.piece(token) in (b"}", b")", b"b")


CALL = f"""
start: reasoning <[{TAG}]> calls | free
reasoning[lazy]: /(?s:.*)<\\//
calls: call ("\\n" call)*
call: "{{\\"name\\": " ("\\"a\\"" | "\\"bb\\"") ", " %json {json.dumps(PERSON)} "}}"
free: TEXT
TEXT: /(?s:.*)/ & ~/(?s:.*)<(?s:.*)/
"""
"""As the gateway makes them for tools: text up to a mark, a special token, and objects."""

SEVERAL = """
start: a b c
a: /[ab]{0,9}/
b[suffix="12"]: /(?s:.*)/
c: /[a-c]{2,4}/ | "true" | "the"
%ignore / +/
"""


@pytest.mark.parametrize(
    "grammar",
    [of("json", PERSON), of("json", TREE), of("grammar", CALL), of("grammar", SEVERAL)],
    ids=["person", "tree", "call", "several"],
)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**16)), max_size=6))
def test_a_mask_is_a_function_of_the_output_however_it_was_reached(
    grammar: Grammar, moves: list[tuple[int, int]]
) -> None:
    """As after rejected drafts: each move goes back and takes another way."""
    state, output = grammar.begin(), list[int]()
    for back, seed in moves:
        chance = Random(seed)
        del output[max(0, len(output) - back) :]
        for _ in range(chance.randrange(12)):
            if output[-1:] == [STOP]:
                break
            output.append(chance.choice(sorted(allowed(state, output))))

        anew = grammar.begin()

        assert allowed(state, output) == allowed(anew, output)
        assert state.forced() == anew.forced()


def test_only_the_special_tokens_that_a_grammar_names_may_follow() -> None:
    grammar = of("grammar", f"start: <[{TAG}]> /[ab]/")

    assert allowed(grammar.begin(), []) == {TAG}
    assert bytes_of(sorted(allowed(grammar.begin(), [TAG]))) == b"ab"


def test_tokens_are_counted_up_to_the_first_that_may_not_follow() -> None:
    state = choice(["aab12", "aab100"]).begin()
    state.follow(greedy("aab"))

    assert state.count_allowed(greedy("12")) == 1
    assert state.count_allowed([*greedy("1"), *greedy("a")]) == 1
    assert state.count_allowed(greedy("b")) == 0


def test_after_the_end_of_its_grammar_an_answer_is_free() -> None:
    state, logits = choice(["ab"]).begin(), np.zeros(V, np.float32)

    assert state.mask(logits, [*greedy("ab"), STOP, 7]) is logits
    assert state.forced() is None
    assert state.count_allowed(greedy("a")) == 0
    assert allowed(state, []) == set(greedy("ab"))


def test_a_mask_never_changes_the_logits_it_is_given() -> None:
    logits = np.arange(V, dtype=np.float32)

    masked = choice(["ab", "b"]).begin().mask(logits, [])

    assert np.array_equal(logits, np.arange(V))
    kept = np.flatnonzero(masked > -np.inf)
    assert np.array_equal(masked[kept], logits[kept])


def test_states_of_one_grammar_may_be_used_in_several_threads() -> None:
    """They share a lexer."""
    grammar = of("json", PERSON)

    def walk(seed: int) -> list[int]:
        return generated(grammar, Random(seed).choice, 150)

    alone = [walk(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(walk, range(4)))

    assert together == alone


def test_a_text_that_the_grammar_does_not_allow_proposes_nothing_and_has_no_mask() -> None:
    state = choice(["ab"]).begin()

    state.follow(greedy("ba"))

    assert state.forced() is None
    assert state.count_allowed(greedy("b")) == 0
    with pytest.raises(GrammarFailed, match="left it"):
        state.mask(np.zeros(V, np.float32), greedy("ba"))


def test_a_grammar_at_its_limits_fails_and_is_spent() -> None:
    """After the first token 2**60 are forced."""
    doubled = [f"t{i}: t{i + 1} t{i + 1}" for i in range(60)]
    grammar = of("grammar", "\n".join(['start: "b" | t0', *doubled, 't60: "a"']))

    with pytest.raises(GrammarFailed, match="cannot go on"):
        generated(grammar, min)

    assert grammar.is_spent


# llguidance is given tokens that have the bytes of a text, whatever the tokenizer adds.


def spaced(text: str) -> list[int]:
    """A tokenizer that puts a space before each text, as SentencePiece's do."""
    return greedy(f" {text}")


def unhelpful(text: str) -> list[int]:
    """A tokenizer that changes the text."""
    return greedy(text.upper())


@pytest.mark.parametrize("tokenize", [greedy, spaced, unhelpful])
@pytest.mark.parametrize("text", ["abab", "true", '{"name": "\u00e9"}'])
def test_forced_tokens_have_the_bytes_of_the_text_and_are_the_tokenizers_where_they_can_be(
    tokenize: Tokenize, text: str
) -> None:
    tokens = MatcherTokens(VOCABULARY, tokenize)

    forced = make_matcher(tokens, grammar_text("choice", [text])).compute_ff_tokens()

    assert forced == greedy(text)


def test_tokens_die_with_the_last_grammar_that_is_made_of_them() -> None:
    encoder = partial(greedy)
    grammar = Grammar(MatcherTokens(VOCABULARY, encoder), grammar_text("choice", ["ab"]))
    grammar.begin().forced()
    dies = ref(encoder)
    del encoder
    assert dies() is not None

    del grammar

    assert dies() is None


@pytest.mark.parametrize(
    ("grammar", "attribute"),
    [
        ('start: a\na[stop="x"]: /.*/', "stop"),
        ('start: a\n?a [lazy, stop = ""]: /b/', "stop"),
        ("start: a\na[max_tokens=5]: /b*/", "max_tokens"),
        ("start: a\na[temperature=0.5]: /b/", "temperature"),
    ],
)
def test_a_rule_whose_attribute_would_be_ignored_is_an_error(
    grammar: str, attribute: str
) -> None:
    with pytest.raises(InvalidGrammar, match=f"`{attribute}`"):
        grammar_text("grammar", grammar)


def test_the_word_stop_elsewhere_is_not() -> None:
    text = grammar_text("grammar", 'start: "[ stop=" STOP\nSTOP: /[a-z]+/')

    make_matcher(TOKENS, text)


def test_an_error_is_one_line() -> None:
    with pytest.raises(InvalidGrammar) as raised:
        make_matcher(TOKENS, grammar_text("regex", "a\n("))

    assert "\n" not in raised.value.reason
    assert "unclosed group" in raised.value.reason


# What is no constraint is an error that names its part.


@pytest.mark.parametrize(
    ("data", "kind", "value"),
    [
        (b'{"json": {"b": 1, "a": 2}}', "json", '{"b": 1, "a": 2}'),
        (b'{"json_object": true}', "json_object", True),
        (b'{"regex": "a"}', "regex", "a"),
        (b'{"choice": ["a", "b"], "regex": null}', "choice", ["a", "b"]),
        (b'{"grammar": "start: \\"a\\""}', "grammar", 'start: "a"'),
    ],
)
def test_a_constraint_is_of_one_kind(data: bytes, kind: str, value: object) -> None:
    constraint = Constraint.of(data)

    assert (constraint.kind, constraint.value) == (kind, value)


@pytest.mark.parametrize(
    ("data", "where", "reason"),
    [
        (b"{}", "", "exactly one of"),
        (b"[]", "", "array"),
        (b"", "", "truncated"),
        (b'{"regex": "a", "json_object": true}', "", "exactly one of"),
        (b'{"regex": 5}', "", "regex"),
        (b'{"structural_tag": "a"}', "", "structural_tag"),
        (b'{"json": true}', "json", "object"),
        (b'{"json": "{}"}', "json", "object"),
        (b'{"json_object": false}', "json_object", "true"),
        (b'{"choice": []}', "choice", "empty"),
        (b'{"json": ' + b'{"a":' * 20_000, "", "recursion"),
        (b'{"regex": "%s"}' % (b"a" * MAX_BYTES), "", "larger"),
    ],
)
def test_what_is_none_names_its_part(data: bytes, where: str, reason: str) -> None:
    with pytest.raises(InvalidGrammar, match=reason) as raised:
        Constraint.of(data)

    assert raised.value.where == where
    assert raised.value.field("x") == (f"x.{where}" if where else "x")
