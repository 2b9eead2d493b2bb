"""A Source is the models' output for one answer, made up from an acceptance or from a Trace.

The target's answer is fixed: judged `coupled`, it is a function of prompt and seed. So is the
draft token after any context that the target commits. After a miss the chain is broken whatever
follows: a trace has the next draft tokens after a miss, and other tokens are made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from random import Random
from typing import Final
from zipfile import ZipFile

import numpy as np

from bench.prompts import SOURCES, read, sampling
from bench.traces import Ids, Logits, Trace
from edge_agent.draft.drafter import drafts_while_matching
from local_models.llama_cpp.prefix import common_prefix
from speculation.coupled import SHARPNESS
from speculation.coupled import sampler as draft_sampler
from speculation.distributions import Distribution
from speculation.draft_token import DraftToken
from speculation.messages import TokenId
from speculation.noise import gumbel, noise_index

WRONG: Final = 100_000
"""Tokens from this one on are in no answer. They take three bytes on the wire, like most tokens
of a large vocabulary. All of an answer are different, or the edge could look them up."""

VOCABULARY: Final = 1 << 20


class Source:
    """A Source has one answer of n tokens, and the draft model's output for it.

    drafts[i]: the draft token after tokens[:i]. confidences: float[n], of these.
    after_miss[i]: the draft tokens after drafts[i], if that is not the target's token.
    ranks[i]: the number of tokens that the draft model prefers to the target's, drafts[i] not
    counted; inf if unknown.
    predicted: the answer that the client expects.
    """

    def __init__(
        self,
        prompt: Sequence[TokenId],
        tokens: Sequence[TokenId],
        drafts: Sequence[TokenId],
        confidences: Sequence[float],
        after_miss: Sequence[Sequence[DraftToken]] = (),
        ranks: Sequence[float] = (),
        predicted: Sequence[TokenId] = (),
    ) -> None:
        self.prompt = tuple(prompt)
        self.predicted = tuple(predicted)
        self.tokens = list(tokens)
        self._drafts = list(drafts)
        self._confidences = list(confidences)
        self._after_miss = list(after_miss) or [()] * len(self.tokens)
        self.ranks = list(ranks) or [inf] * len(self.tokens)
        self.distributions = [Distribution(np.array([t]), np.ones(1)) for t in self.tokens]
        """These are the target's distributions after its noise: each has only the generated
        token."""

    @property
    def acceptance(self) -> float:
        """Return the share of tokens that are drafted right in the right context."""
        pairs = zip(self._drafts, self.tokens, strict=True)
        return sum(drafted == token for drafted, token in pairs) / len(self.tokens)

    def draft(self, context: Sequence[TokenId]) -> DraftToken:
        """Return the draft token after `context`, which has output tokens only."""
        position, at = len(context), common_prefix(context, self.tokens)
        if at == position:
            return DraftToken(self._drafts[position], self._confidences[position])
        since = list(context[at:])  # the miss and the tokens after it
        recorded = [self._drafts[at], *(each.token for each in self._after_miss[at])]
        if since == recorded[: len(since)] and len(since) < len(recorded):
            return self._after_miss[at][len(since) - 1]
        return DraftToken(WRONG + position, self._confidences[position])

    def drafts(self, context: Sequence[TokenId], ahead: Sequence[TokenId]) -> list[DraftToken]:
        """Return the result of a step that also reads `ahead` (edge_agent...drafter)."""
        room = len(self.tokens) - len(context) - 1
        return drafts_while_matching(lambda n: self.draft([*context, *ahead[:n]]), ahead[:room])


def synthetic(
    acceptance: float, tokens: int, seed: int = 0, prompt_tokens: int = 0, hits: float = 0.0
) -> Source:
    """Return an answer whose draft tokens are all accepted with the same probability. hits: the
    probability that, after a rejection, the draft model's next best token is the target's."""
    chance = Random(seed)
    answer = list(range(tokens))
    drafts = [token if chance.random() < acceptance else WRONG for token in answer]
    ranks = [0 if chance.random() < hits else inf for _ in answer]
    return Source((0,) * prompt_tokens, answer, drafts, [acceptance] * tokens, ranks=ranks)


def traced(trace: Trace) -> Source:
    """Return the answer of a trace, with the draft tokens that the edge samples for it."""
    sampler = draft_sampler(sampling(trace.temperature), trace.seed, len(trace.prompt))
    rows = enumerate(zip(trace.draft_tokens, trace.draft_logits, strict=True))
    drafts = [sampler(dense(tokens, logits), position) for position, (tokens, logits) in rows]
    after_miss = trace.after_miss_tokens.tolist(), trace.after_miss_confidences.tolist()
    return Source(
        trace.prompt.tolist(),
        trace.tokens.tolist(),
        [draft.token for draft in drafts],
        [draft.confidence for draft in drafts],
        [
            [DraftToken(t, c) for t, c in zip(tokens, confidences, strict=True) if t >= 0]
            for tokens, confidences in zip(*after_miss, strict=True)
        ],
        _ranks(trace),
    )


def _ranks(trace: Trace) -> list[float]:
    ranks: list[float] = []
    rows = zip(trace.tokens, trace.draft_tokens, trace.draft_logits, strict=True)
    for position, (target, tokens, logits) in enumerate(rows):
        scores = logits
        if trace.temperature:
            noise = gumbel(trace.seed, noise_index(len(trace.prompt), position), tokens)
            scores = SHARPNESS / trace.temperature * logits + noise
        known = scores[tokens == target]
        ranks.append(float(np.count_nonzero(scores > known)) - 1 if known.size else inf)
    return ranks


def dense(tokens: Ids, logits: Logits) -> Logits:
    """Return logits over the vocabulary; those that were not kept are -inf."""
    row = np.full(int(tokens.max()) + 1, -np.inf, np.float32)
    row[tokens] = logits
    return row


# Makes up answers from texts, so that `pace` also runs where no models are.
#
# What an answer repeats of its prompt, of itself and of earlier answers decides what n-grams
# and suffixes bring, and that is in the texts: files of the scenarios, and questions of the
# bench. Their tokens are words and parts of words, about as long as those of a large
# vocabulary. Draft tokens are right with about the probability that the Qwen pair has in such a
# family, one independent of another. So these families show who repeats text best; traces show
# how well a draft model drafts.
#
#     code      the prompt is a function's head and docstring, the answer the whole function
#     maths   the prompt is a question, the answer another one (no answer of a model is at hand)
#     chat      the prompt is the begin of a document, the answer a later part of it
#     agent     the prompt is a file, the answer a part of it with one name changed
#     long      the prompt is three files, the answer quotes and describes them by turns
#     extract   the prompt is a file, the answer a record about it in JSON, as in a pipeline

ANSWERS: Final = 8
"""Each family has this many answers."""

ANSWER_TOKENS: Final = 200
"""An answer has at most this many tokens."""

ACCEPTANCE: Final[Mapping[str, float]] = {
    "code": 0.95, "maths": 0.9, "chat": 0.7, "agent": 0.85, "long": 0.75, "extract": 0.85,
}  # fmt: skip
"""A draft token is right with this probability."""

_TOKEN: Final = re.compile(r"[ ]?[^\W\d_]{1,7}|\d|\s+|_|[^\w\s]{1,2}")
_FUNCTION: Final = re.compile(r"^( *)(?:async )?def .+?(?=^\1\S|\Z)", re.DOTALL | re.MULTILINE)

Texts = Iterator[tuple[str, str]]
"""Prompts and their answers."""


def made_up() -> dict[str, list[Source]]:
    """Return the answers of each family."""
    with ZipFile(SOURCES) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    python = {name: text for name, text in sorted(files.items()) if name.endswith(".py")}
    makers: Mapping[str, Callable[[Mapping[str, str]], Texts]] = {
        "code": _code, "maths": _maths, "chat": _chat,
        "agent": _agent, "long": _long, "extract": _extract,
    }  # fmt: skip
    return {
        family: list(_sources(make(python if family != "chat" else files), family))
        for family, make in makers.items()
    }


def _sources(texts: Texts, family: str) -> Iterator[Source]:
    ids: dict[str, int] = {}
    chance = Random(family)
    for count, (prompt, answer) in enumerate(texts):
        if count == ANSWERS:
            return
        read, target = (
            [ids.setdefault(token, len(ids)) for token in _TOKEN.findall(text)]
            for text in (prompt, answer)
        )
        right = ACCEPTANCE[family]
        target = target[:ANSWER_TOKENS]
        drafts = [t if chance.random() < right else WRONG + i for i, t in enumerate(target)]
        yield Source(read, target, drafts, [right] * len(target))


def _functions(text: str, least: int, most: int) -> list[str]:
    names = (match[0] for match in _FUNCTION.finditer(text))
    return [function for function in names if least <= function.count("\n") <= most]


def _code(files: Mapping[str, str]) -> Texts:
    for text in files.values():
        for function in _functions(text, 10, 40)[:2]:
            head, quotes, rest = function.partition('"""')
            docstring = rest.partition('"""')[0]
            if quotes and docstring:
                yield f'Complete this.\n{head}"""{docstring}"""\n', f"```python\n{function}```"


def _maths(files: Mapping[str, str]) -> Texts:
    questions = [each.prompt for each in read(families=["maths"])]
    yield from zip(questions, questions[1:] + questions[:1], strict=True)


def _chat(files: Mapping[str, str]) -> Texts:
    for text in files.values():
        prose = [line for line in text.splitlines() if len(line) > 60 and line[0].isalpha()]
        if len(prose) > 8:
            yield prose[0], "\n".join(prose[4:])


def _agent(files: Mapping[str, str]) -> Texts:
    for name, text in files.items():
        for function in _functions(text, 15, 60)[:1]:
            names = re.findall(r"\b[a-z]{4,}\b", function.partition(":")[2])
            old = max(sorted(set(names)), key=names.count)
            changed = re.sub(rf"\b{old}\b", f"{old}_now", function)
            ask = f"\nIn {name}, call {old} {old}_now in this function."
            yield f"[read_file {name}]\n{text}{ask}", f"```python\n{changed}```"


def _long(files: Mapping[str, str]) -> Texts:
    chosen = [text for text in files.values() if text.count('"""') > 6]
    for first, second, third in zip(chosen, chosen[1:], chosen[2:], strict=False):
        quoted = re.findall(r'"""([^"]{80,300})', first)[1::2]
        own = re.findall(
            r'"""([^"]{80,300})', chosen[0] if first is not chosen[0] else chosen[-1]
        )
        parts = [part for pair in zip(own, quoted, strict=False) for part in pair]
        yield f"{first}\n{second}\n{third}\nWhat does it do?", "\n\n".join(parts)


def _extract(files: Mapping[str, str]) -> Texts:
    for name, text in files.items():
        names: Sequence[str] = re.findall(r"(?:def|class) (\w+)", text)
        record = {
            "path": name, "language": "python", "is_test": "test" in name,
            "summary": text.strip('"').partition("\n")[0], "needs_review": False,
            "definitions": [{"name": each, "is_public": each[0] != "_"} for each in names[:5]],
            "imports_asyncio": "import asyncio" in text, "confidence": "high",
        }  # fmt: skip
        yield f"{text[:6000]}\n\nThe record of {name}:", json.dumps(record, indent=1)
