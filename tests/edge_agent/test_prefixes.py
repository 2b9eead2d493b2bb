"""Where a conversation goes on, by what is believed of the verifiers' caches."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link import prefixes
from edge_agent.link.known_verifiers import Event, KnownVerifier, KnownVerifiers
from edge_agent.link.prefixes import BLOCK, Prefixes, PromptBlocks, PromptReading, Speed

BLOCKS = st.lists(st.sampled_from("abc"), max_size=6)


def prompt(blocks: str, rest: int = 0, owner: str = "ann") -> PromptBlocks:
    """Return the prompt with a block of equal tokens for each letter."""
    tokens = [ord(letter) for letter in blocks for _ in range(BLOCK)]
    return PromptBlocks.of((*tokens, *range(rest)), owner)


@given(st.lists(BLOCKS, max_size=8), BLOCKS, st.integers(0, BLOCK - 1))
def test_what_is_held_is_the_longest_beginning_of_what_was_sent(
    sent: list[list[str]], asked: list[str], rest: int
) -> None:
    known = Prefixes()
    for each in sent:
        known.sent(prompt("".join(each), rest))
    agreed = [
        next((i for i, (a, b) in enumerate(zip(each, asked, strict=False)) if a != b),
             min(len(each), len(asked)))
        for each in sent
    ]  # fmt: skip

    assert known.held(prompt("".join(asked), rest)) == BLOCK * max(agreed, default=0)
    assert known.held(prompt("".join(asked), owner="eve")) == 0


def test_what_is_lacked_takes_with_it_all_that_was_used_before() -> None:
    known = Prefixes()
    for blocks in ("ab", "cd", "efg"):
        known.read(prompt(blocks), known.sent(prompt(blocks)), 0)

    known.read(prompt("cd"), known.sent(prompt("cd")), BLOCK + 8)  # a part is read anyway
    assert known.held(prompt("ab")) == 2 * BLOCK
    known.read(prompt("efg"), known.sent(prompt("efg")), BLOCK)  # it had lost g, not f

    held = {blocks: known.held(prompt(blocks)) // BLOCK for blocks in ("ab", "cd", "efg")}
    assert held == {"ab": 0, "cd": 2, "efg": 3}
    known.forget()
    assert known.tokens == 0


def test_what_is_on_its_way_twice_shows_nothing_of_the_cache() -> None:
    known = Prefixes()
    known.read(prompt("ab"), known.sent(prompt("ab")), 0)

    first, second = known.sent(prompt("cd")), known.sent(prompt("cd"))
    assert known.held(prompt("cd")) == 2 * BLOCK
    known.read(prompt("cd"), first, 0)
    known.read(prompt("cd"), second, 0)

    assert known.held(prompt("ab")) == 2 * BLOCK


def test_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_BLOCKS", 3)
    known = Prefixes()

    for blocks in ("ab", "cd"):
        known.read(prompt(blocks), known.sent(prompt(blocks)), 0)

    assert known.held(prompt("ab")) == BLOCK  # the end goes first
    assert known.held(prompt("cd")) == 2 * BLOCK


def test_the_speed_is_learned_from_long_prompts() -> None:
    speed = Speed()
    for tokens, cached_tokens, seconds in ((40 * BLOCK, 0, 0.5), (40 * BLOCK, 39 * BLOCK, 0.5)):
        reading = PromptReading(prompt("ab" * (tokens // BLOCK // 2)), Prefixes(), speed)
        reading.opened(10.0)
        reading.cached_tokens(cached_tokens)
        reading.first_token(10.0 + seconds)

    assert speed.tokens_per_s == 40 * BLOCK / 0.5


# The choice.


@pytest.mark.parametrize(
    ("rtt_s", "load", "asked", "held", "stays"),
    [
        (0.01, 0.0, 0, "abcd", True),
        (0.01, 1.0, 5, "abcd", True),  # 256 tokens are read in a quarter of a second
        (0.01, 1.0, 20, "abcd", False),
        (0.30, 0.0, 0, "abcd", False),
        (0.02, 0.0, 0, "", False),
        (0.02, 0.0, 0, "a", True),
    ],
)
def test_a_conversation_stays_unless_waiting_costs_more_than_reading(
    rtt_s: float, load: float, asked: int, held: str, stays: bool
) -> None:
    near = KnownVerifier("near", Event.IS_READY, rtt_s=0.01)
    other = KnownVerifier("other", Event.IS_READY, rtt_s=rtt_s, load=load, open_sessions=asked)
    other.prefixes.sent(prompt(held))
    known = KnownVerifiers([near, other])

    assert (known.choose("", prompt=prompt("abcde")) is other) == stays
    other.note(Event.LOST)
    assert known.choose("", prompt=prompt("abcde")) is near


class Cache:
    """A verifier's cache of this many blocks, which forgets what was used least recently."""

    def __init__(self, blocks: int) -> None:
        self.blocks, self.room = OrderedDict[int, None](), blocks

    def read(self, asked: PromptBlocks) -> int:
        """Return how many tokens it has, and take in the others."""
        lacks = (i for i, block in enumerate(asked.blocks) if block not in self.blocks)
        had = next(lacks, len(asked.blocks))
        for block in reversed(asked.blocks):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.room:
            self.blocks.popitem(last=False)
        return BLOCK * had


def read_again(chance: Random, verifiers: int, room: int, by_prompt: bool) -> int:
    """Return how many tokens of 30 conversations of 6 turns are read more than once."""
    chats = [tuple(chance.choices(range(9), k=9 * BLOCK)) for _ in range(30)]
    turns = [i for i in range(30) for _ in range(6)]
    chance.shuffle(turns)
    known = KnownVerifiers(
        [KnownVerifier(f"{i}", Event.IS_READY, rtt_s=0.02) for i in range(verifiers)]
    )
    caches = {v.label: Cache(room) for v in known.all}
    running, sizes, read = list[KnownVerifier](), [4 * BLOCK] * 30, 0
    for chat in turns:
        for verifier in known.all:
            verifier.timed(chance.uniform(0.01, 0.03))
        asked = PromptBlocks.of(chats[chat][: sizes[chat]], "ann")
        chosen = known.choose("", prompt=asked if by_prompt else None)
        assert chosen is not None
        known.current = chosen
        had = caches[chosen.label].read(asked)
        reading = PromptReading(asked, chosen.prefixes, known.speed)
        reading.opened(0.0)
        reading.cached_tokens(had)
        reading.first_token(0.05 + (asked.tokens - had) / 5000)
        read, sizes[chat] = read + asked.tokens - had, sizes[chat] + BLOCK
        chosen.open_sessions += 1
        running.append(chosen)
        if len(running) > 6:
            running.pop(0).open_sessions -= 1
    return read - 30 * 9 * BLOCK


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_conversations_over_three_verifiers_are_read_once(seed: int) -> None:
    roomy = read_again(Random(seed), 3, 1000, by_prompt=True)
    without = read_again(Random(seed), 3, 1000, by_prompt=False)

    assert read_again(Random(seed), 1, 3000, by_prompt=True) == 0
    assert roomy <= 0.1 * without
