"""Records traces of a target's answers, with the draft model's draft tokens at each position
and after each miss.

The target generates the answer, or a run already has it; then only the draft model runs, which
takes seconds a prompt. A run's text is tokenised anew: the tokens may differ from those that
the target generated, but the text is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from bench import long_work, options
from bench.files import load
from bench.prompts import SHIPPED, Conversation, Prompt, read, sampling
from bench.results import Answer, Results
from bench.traces import Ids, Logits, Text, Trace
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from local_models.store import open_store
from local_models.tokenizer_file import tokenizer_file
from speculation import coupled
from speculation.distributions import distribution, top
from speculation.draft_token import DraftSampler, DraftToken
from speculation.model_facts import TokenId
from speculation.noise import noise_index

KEPT: Final = 256
"""This many tokens of each distribution are kept: they have more than 99.9 % of the probability
nearly always."""

AFTER_MISS: Final = 16
"""This many draft tokens are kept after a miss: a few more than are drafted before its Commit
arrives."""

CONTEXT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Subject:
    """A trace is recorded of a prompt with these settings."""

    prompt: Prompt
    family: str
    temperature: float
    seed: int
    reply: Answer | None = None
    """A run's target gave this answer; None if the target has yet to generate it."""


def answered(results: Results, prompts: Mapping[str, Prompt]) -> list[Subject]:
    """Return cloud's first answer to each prompt at each temperature."""
    subjects: dict[tuple[str, float], Subject] = {}
    for a in results.answers:
        if a.arm == "cloud" and a.prompt in prompts:
            seed = int(str(results.settings["seed"])) + a.repeat
            subject = Subject(prompts[a.prompt], a.family, a.temperature, seed, a)
            subjects.setdefault((a.prompt, a.temperature), subject)
    return list(subjects.values())


def traces(
    target_file: Path, draft_file: Path, subjects: Sequence[Subject], tokens: int,
    context_tokens: int = CONTEXT_TOKENS,
) -> Iterator[Trace]:  # fmt: skip
    """Record one subject after another. A generated answer has up to `tokens` tokens.

    If all subjects have replies, any file with the target's vocabulary and chat template will
    do. Raises ModelError, or ValueError for a prompt that the template rejects.
    """
    answers = _answers(target_file, subjects, tokens, context_tokens)
    return replayed(draft_file, answers, context_tokens)


def _answers(
    target_file: Path, subjects: Sequence[Subject], tokens: int, context_tokens: int
) -> Iterator[tuple[Subject, Text, Text]]:
    """Yield each subject with its prompt and its answer."""
    generates = any(subject.reply is None for subject in subjects)
    with ExitStack() as stack:
        target = stack.enter_context(closing(Model(target_file, vocabulary_only=not generates)))
        if generates:
            generator = stack.enter_context(closing(Context(target, context_tokens)))
        tokenizer, conversation = tokenizer_file(target_file).open(), Conversation()
        for subject in subjects:
            before = conversation.before(subject.prompt)
            question = {"role": "user", "content": subject.prompt.prompt}
            prompt = tokenizer.chat([*before, question])
            if subject.reply is None:
                answer = _generate(generator, subject, prompt, tokens)
                text = b"".join(map(tokenizer.piece, answer)).decode(errors="replace")
            else:
                answer = tokenizer.encode(text := subject.reply.text)
                eos = target.vocabulary.eos
                if eos is not None and subject.reply.tokens == len(answer) + 1:
                    answer = [*answer, eos]
            conversation.answered(subject.prompt, text)
            yield subject, prompt, answer


def replayed(
    draft_file: Path, answers: Iterable[tuple[Subject, Text, Text]],
    context_tokens: int = CONTEXT_TOKENS,
) -> Iterator[Trace]:  # fmt: skip
    """Draft along answers with their prompts, which are in the draft model's vocabulary."""
    with closing(Model(draft_file)) as model, closing(Context(model, context_tokens)) as draft:
        for subject, prompt, answer in answers:
            settings = sampling(subject.temperature)
            sampler = coupled.sampler(settings, subject.seed, len(prompt))
            q, after_miss, confidences = _draft(draft, prompt, answer, sampler)
            yield Trace(
                subject.family, subject.prompt.id, subject.temperature, subject.seed,
                np.array(prompt, np.int32), np.array(answer, np.int32), *_shortened(q),
                after_miss, confidences,
            )  # fmt: skip


def _generate(target: Context, subject: Subject, prompt: Text, most: int) -> list[TokenId]:
    """Return the target's answer."""
    answer: list[TokenId] = []
    stops = target.model.vocabulary.stop_tokens
    settings = sampling(subject.temperature)
    _prefill(target, prompt[:-1])
    while len(answer) < most and not stops.intersection(answer[-1:]):
        last = answer[-1] if answer else prompt[-1]
        target.decode([Segment(0, target.length(0), [last])])
        at = noise_index(len(prompt), len(answer))
        answer.append(distribution(target.logits(0), settings).picked(subject.seed, at))
    return answer


def _draft(
    draft: Context, prompt: Text, answer: Text, sampler: DraftSampler
) -> tuple[list[Logits], Ids, Logits]:
    """Return the draft model's logits at each position, and its tokens after its misses."""
    _prefill(draft, prompt[:-1])
    logits: list[Logits] = []
    tokens = np.full((len(answer), AFTER_MISS), -1, np.int32)
    confidences = np.zeros((len(answer), AFTER_MISS), np.float32)
    for position, (token, expected) in enumerate(pairwise((prompt[-1], *answer))):
        draft.decode([Segment(0, draft.length(0), [token])])
        logits.append(draft.logits(0).copy())
        drafted = sampler(logits[-1], position)
        if drafted.token != expected:
            after = _after_miss(draft, drafted, position, sampler)
            tokens[position] = [each.token for each in after]
            confidences[position] = [each.confidence for each in after]
    return logits, tokens, confidences


def _after_miss(
    draft: Context, missed: DraftToken, position: int, sampler: DraftSampler
) -> list[DraftToken]:
    """Return the draft tokens after one that missed, and remove them from the cache."""
    length = draft.length(0)
    chain = [missed]
    for n in range(AFTER_MISS):
        draft.decode([Segment(0, length + n, [chain[-1].token])])
        chain.append(sampler(draft.logits(0), position + 1 + n))
    draft.truncate(0, length)
    return chain[1:]


def _prefill(context: Context, tokens: Sequence[int]) -> None:
    context.truncate(0, 0)
    for start in range(0, len(tokens), context.limits.batch_tokens):
        chunk = tokens[start : start + context.limits.batch_tokens]
        context.decode([Segment(0, start, chunk, logits=0)])


def _shortened(rows: Sequence[Logits]) -> tuple[Ids, Logits]:
    """Return the KEPT likeliest tokens of each row, and their log-probabilities at temperature
    1, in a Trace's form. rows: float32[V] each."""
    tokens = [top(row, KEPT) for row in rows]
    shifted = [row - row.max() for row in rows]
    totals = [np.log(np.exp(row, dtype=np.float64).sum()) for row in shifted]
    rows_of = zip(shifted, tokens, totals, strict=True)
    logits = [row[kept] - total for row, kept, total in rows_of]
    return np.array(tokens, np.int32), np.array(logits, np.float32)


def record(
    out: Annotated[Path, typer.Option(help="Folder for the traces.")],
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    families: options.Families = "",
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    temperatures: options.Temperatures = "0",
    seed: Annotated[int, typer.Option()] = 7,
    answers: Annotated[
        Path | None, typer.Option(help="A file of `run`: the draft model reads its answers.")
    ] = None,
) -> None:
    """Record what both models generate, for `simulate`."""
    store = open_store(os.environ)
    pairs = store.catalogue.pairs
    with options.checked():
        target = pairs[target_model].target if target_model in pairs else target_model
        files = store.find(target, "draft").path, store.find(draft_model, "draft").path
        chosen = read(prompts, options.names(families), per_family)
        if answers:
            subjects = answered(load(answers, Results), {p.id: p for p in chosen})
        else:
            asked = product(options.numbers(temperatures), chosen)
            subjects = [Subject(prompt, prompt.family, t, seed) for t, prompt in asked]
        long = any(prompt.scenario for prompt in chosen)
        out.mkdir(parents=True, exist_ok=True)
        room = long_work.CONTEXT_TOKENS if long else CONTEXT_TOKENS
        recorded = traces(*files, subjects, tokens, room)
        for trace in track(recorded, "recording", total=len(subjects)):
            Console().print(str(trace.save(out)))
