"""A free sequence goes to the prompt it suits best."""

from __future__ import annotations

import pytest

from picospec.verifier.llama_target.target import KvSlots


def places(*held: tuple[int, ...]) -> KvSlots:
    """KvSlots whose sequences 0, 1, ... hold this."""
    made = KvSlots(len(held))
    for sequence in sorted(made.take(())[0] for _ in held):
        made.release(sequence, held[sequence])
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


def turns(made: KvSlots, *conversations: int, count: int) -> list[int]:
    """Let conversations take turns, each 10 tokens longer than the last; return how many tokens
    each turn of the last round found."""
    texts = {name: [name] * 20 for name in conversations}
    for _ in range(count):
        found = []
        for text in texts.values():
            sequence, common = made.take(text)
            found.append(common)
            made.release(sequence, tuple(text))
            text.extend(text[-1:] * 10)
    return found


def test_conversations_that_are_over_do_not_keep_their_sequences() -> None:
    over = places(*((100 + i,) * 1000 for i in range(4)))

    assert turns(over, 1, 2, 3, count=40) == [400, 400, 400]


def test_a_long_conversation_outlives_many_short_prompts() -> None:
    made = places((1,) * 1000, *((100 + i,) * 10 for i in range(3)))
    for prompt in range(200, 240):
        made.release(made.take((prompt,) * 10)[0], (prompt,) * 10)

    assert made.take((1,) * 1010)[1] == 1000
