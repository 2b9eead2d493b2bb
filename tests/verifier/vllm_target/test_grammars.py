"""The edge and vLLM mean the same by a grammar, and vLLM sees none that was not tried."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest

from picospec.speculation.messages import Sampling
from picospec.verifier.target import Unservable
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PERSON,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
)

pytestmark = ON_ENGINE
CONSTRAINTS: dict[str, tuple[dict[str, Any], str]] = {
    "json": ({"json": PERSON}, r'(?s)\{\s*"name".*'),
    "compact": ({"json": {**PERSON, "x-guidance": {"whitespace_flexible": False}}}, r'\{"na.*'),
    "json_object": ({"json_object": True}, r"(?s)\{.*"),
    "regex": ({"regex": r"[A-Z][a-z]{2,8} \d{2}"}, r"[A-Z][a-z]{2,8} \d{2}"),
    "choice": ({"choice": ["positive", "negative"]}, "positive|negative"),
    "grammar": ({"grammar": 'start: "yes" | "no" " way"?'}, "yes|no( way)?"),
}


def with_grammar(sampling: Sampling, constraint: dict[str, Any]) -> Sampling:
    raw = {"structured_outputs": msgspec.Raw(msgspec.json.encode(constraint))}
    return msgspec.structs.replace(sampling, extras=raw)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", CONSTRAINTS)
async def test_every_token_is_one_that_the_edge_allows_and_every_forced_one_is_the_same(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    constraint, pattern = CONSTRAINTS[name]
    stop = tuple(target.facts.stop_tokens)
    shaped = with_grammar(sampling, constraint)
    request = opening(target, PROMPTS[0], shaped, max_tokens=40, stop_tokens=stop)
    grammar = await target.grammars.compile(msgspec.json.encode(constraint))

    tokens = (await plain(target, f"plain {name}", request)).tokens
    answer = await drafted(target, name, request, tokens, Script(wrong=0.3))

    assert answer.tokens == tokens
    text = b"".join(target.tokenizer.piece(token) for token in tokens).decode()
    assert re.fullmatch(pattern, text)
    state, logits = grammar.begin(), np.zeros(target.facts.vocabulary_size, np.float32)
    forced = 0
    for at, token in enumerate(tokens):
        assert state.mask(logits, tokens[:at])[token] == 0.0
        if (only := state.forced()) is not None:
            assert only == token
            forced += 1
    assert forced > 0 or name in ("json_object", "regex")


async def test_a_grammar_is_tried_before_vllm_sees_it(target: VllmTarget) -> None:
    takes_seconds = with_grammar(GREEDY, {"json": {"type": "integer", "multipleOf": 1000003}})
    request = opening(target, PROMPTS[0], takes_seconds, max_tokens=8)

    with pytest.raises(Unservable, match="takes more than") as raised:
        await target.check(request)

    assert raised.value.param == "structured_outputs.json"
    await target.check(opening(target, PROMPTS[0], with_grammar(GREEDY, {"regex": "a+"})))
