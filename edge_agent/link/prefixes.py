"""Estimates how long each verifier would read a prompt, from what this edge has sent where.

An edge cannot look into the KV cache of a verifier. It remembers which prompts were sent there,
by hashes of blocks, and CachedPromptTokens corrects it. The speed of reading is learned from
the time between Opened and the first Commit. Nothing here has a clock or does I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from speculation.learning import running_mean
from speculation.model_facts import TokenId

BLOCK: Final = 64
"""A block has this many tokens. vLLM's have 16; longer ones cost less here."""

MAX_BLOCKS: Final = 1 << 14
"""A verifier is believed to keep at most this many blocks: a million tokens, for which two
megabytes are needed here. If it keeps less, that is learned."""

READ_TOKENS_PER_S: Final = 1000.0
"""Verifiers are believed to read so fast before one has read a prompt: about ten times faster
than a CPU, and ten times slower than a GPU."""

MIN_READ_TOKENS: Final = 256
"""The speed is learned from at least so many tokens: a pass takes its time for a few, too."""


ON_ITS_WAY: Final = 0
"""In place of the number of its last use: of a block that no verifier is known to have read."""


@dataclass(frozen=True, slots=True)
class PromptBlocks:
    """What is known of a prompt when its verifier is chosen. blocks: the hashes of its whole
    blocks. Each stands for its owner and all tokens up to its end."""

    tokens: int = 0
    blocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokens: tuple[TokenId, ...], owner: str) -> PromptBlocks:
        """owner: what parts the KV of one user from that of others."""
        blocks, last = list[int](), hash(owner)
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            last = hash((last, tokens[end - BLOCK : end]))
            blocks.append(last)
        return cls(len(tokens), tuple(blocks))


class Prefixes:
    """The blocks that a verifier is believed to have."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, int] = OrderedDict()  # to the number of their last use
        self._uses = 0

    @property
    def tokens(self) -> int:
        """The number of tokens in these blocks."""
        return BLOCK * len(self._blocks)

    def held(self, prompt: PromptBlocks) -> int:
        """Return how many of the prompt's first tokens the verifier has."""
        return BLOCK * len(self._held(prompt))

    def _held(self, prompt: PromptBlocks) -> list[int]:
        """Return the last uses of the prompt's first blocks, up to one that is not there."""
        uses = list[int]()
        for block in prompt.blocks:
            if (use := self._blocks.get(block)) is None:
                break
            uses.append(use)
        return uses

    def sent(self, prompt: PromptBlocks) -> list[int]:
        """Note that the prompt is on its way to the verifier. Return what `read` needs."""
        before = self._held(prompt)
        for block in reversed(prompt.blocks):
            self._blocks.setdefault(block, ON_ITS_WAY)
        self._bound()
        return before

    def read(self, prompt: PromptBlocks, before: Sequence[int], cached_tokens: int) -> None:
        """Note that the verifier has read the prompt, of which it had only `cached_tokens`
        tokens. It
        will keep it for longest, and its end less long than its beginning. If it lacked a block
        that it had once, it lacks those that were used before that one, too."""
        lacked = before[cached_tokens // BLOCK + 1 :]  # a part of one is read anyway
        oldest = lacked[0] if lacked else ON_ITS_WAY
        while oldest and self._blocks and next(iter(self._blocks.values())) <= oldest:
            self._blocks.popitem(last=False)
        for block in reversed(prompt.blocks):
            self._uses += 1
            self._blocks[block] = self._uses
            self._blocks.move_to_end(block)
        self._bound()

    def _bound(self) -> None:
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)

    def forget(self) -> None:
        """Note that another process runs there, whose cache is empty."""
        self._blocks.clear()


class Speed:
    """How fast the verifiers read. It is one for all of them, so that none which was slow once
    is left out for ever; what it is busy with counts apart."""

    def __init__(self) -> None:
        self.tokens_per_s = READ_TOKENS_PER_S
        self._learned: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """Note that so many tokens were read in this time."""
        if tokens >= MIN_READ_TOKENS and seconds > 0.0:
            self._learned = running_mean(self._learned, tokens / seconds)
            self.tokens_per_s = self._learned

    def reads_s(self, prompt: PromptBlocks, prefixes: Prefixes) -> float:
        """Return how long a verifier reads what it lacks of a prompt, in seconds."""
        return (prompt.tokens - prefixes.held(prompt)) / self.tokens_per_s


class PromptReading:
    """One session's reading of a prompt, from which its verifier's Prefixes and the Speed are
    learned."""

    def __init__(self, prompt: PromptBlocks, prefixes: Prefixes, speed: Speed) -> None:
        self._prompt, self._prefixes, self._speed = prompt, prefixes, speed
        self._before = prefixes.sent(prompt)
        self._cached_tokens = 0
        self._opened_at = 0.0

    def opened(self, now: float) -> None:
        self._opened_at = now

    def cached_tokens(self, tokens: int) -> None:
        self._cached_tokens = tokens

    def first_token(self, now: float) -> None:
        """Note that the prompt was read."""
        self._prefixes.read(self._prompt, self._before, self._cached_tokens)
        self._speed.observe(self._prompt.tokens - self._cached_tokens, now - self._opened_at)
