"""Two checkouts are compared by the answers that both gave to the same questions."""

from __future__ import annotations

from pathlib import Path

import msgspec

from picospec.bench.data.prompts import Prompt, read
from picospec.bench.data.results import Answer
from picospec.bench.run.versus import Key, deal, report
from tests.bench.answers import answer


def checkout(seconds: float, text: str = "same") -> dict[Key, Answer]:
    """What a checkout measured that generates `text` in `seconds`."""
    return {
        ("picospec", prompt, 10.0, 0.0, 0): answer(
            "picospec", seconds, prompt=prompt, text=text
        )
        for prompt in "ab"
    }


def test_a_checkout_that_is_as_fast_suffices() -> None:
    tokens, first, texts = report(checkout(2.0), checkout(2.0))

    assert tokens == "picospec: tokens/s, new/old: 1.000 [1.000, 1.000], width 0.000: yes"
    assert first.endswith("yes")
    assert texts == "0 of 2 texts differ"


def test_a_checkout_that_is_slower_or_generates_other_texts_is_reported() -> None:
    tokens, _, texts = report(checkout(2.0), checkout(4.0, "other"))

    assert tokens.endswith("0.500 [0.500, 0.500], width 0.000: NO")
    assert texts == "2 of 2 texts differ"


def test_every_slice_has_prompts_of_every_family(tmp_path: Path) -> None:
    prompts = [Prompt(f"{family}{n}", family, "Hi.") for n in range(4) for family in "ab"]

    slices = deal(prompts, 2, tmp_path)

    for path in slices:
        dealt = msgspec.json.Decoder(Prompt).decode_lines(path.read_bytes())
        assert sorted(prompt.family for prompt in dealt) == ["a", "a", "b", "b"]


def test_a_slice_has_whole_conversations_in_order(tmp_path: Path) -> None:
    prompts = read(families=["agent", "held-out"])

    slices = deal(prompts, 2, tmp_path)

    dealt = [read(path) for path in slices]
    assert sorted(p.id for some in dealt for p in some) == sorted(p.id for p in prompts)
    assert all(turn.turn == n % 8 for some in dealt for n, turn in enumerate(some))
