"""A free sequence goes to the prompt it suits best."""

from __future__ import annotations

import pytest

from picospec.verifier.llama_target.kv_slots import KvSlots


def places(*held: tuple[int, ...]) -> KvSlots:
    """KvSlots whose sequences 0, 1, ... hold this."""
    made = KvSlots(len(held))
    for place in sorted(made.take(())[0] for _ in held):
        made.give_back(place, held[place])
    return made


def test_a_prompt_gets_the_sequence_it_shares_most_with() -> None:
    made = places((1, 2), (1, 2, 3, 4), (9,))

    assert made.take((1, 2, 3, 4, 5)) == (1, 4)
    assert made.take((1, 2, 7)) == (0, 2)
    assert made.free == 1


def test_a_short_prompt_does_not_spoil_a_long_conversation() -> None:
    assert places((1, *range(100)), ()).take((1, 7)) == (1, 0)


def test_the_last_token_of_a_prompt_is_always_decoded() -> None:
    assert places((1, 2, 3)).take((1, 2)) == (0, 1)


def test_where_none_is_free_none_is_taken() -> None:
    with pytest.raises(ValueError, match="empty"):
        places().take((1,))
