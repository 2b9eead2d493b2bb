"""The results of a run are its answers, as they arrived, and rows computed from the answers.

A file contains {"host", "commit", "models", "settings", "rows", "answers"}. A row
covers one arm, family, link and temperature; its figures are over all its prompts and repeats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from bench.host import Host
from bench.long_work import FAMILIES, root
from bench.statistics import Timed, gap_ms, geometric_mean, rate, waiting

Settings = dict[str, str | int | float | list[str]]

Key = tuple[str, float, int]
"""Identifies a question: prompt, temperature and repeat. Every arm and link has the same."""

SUMMED: Final = (
    "tokens", "seconds", "drafted", "accepted", "target_passes", "bytes_up", "bytes_down",
    "edge_cpu_s",
)  # fmt: skip
"""These fields of a cell are sums over its answers."""

RESOLUTION_S: Final = 1e-5
"""Times are kept with this resolution: a smaller difference may come from rounding."""


class Answer(msgspec.Struct, frozen=True):
    """An Answer is one measured answer. Seconds and milliseconds count from the request."""

    arm: str
    family: str
    prompt: str
    repeat: int
    rtt_ms: float
    rate_mbit: float | None
    temperature: float
    text: str
    tokens: int
    first_share: float
    """The first piece has this share of the text's characters; 0 without text."""

    seconds: float
    ttft_ms: float
    gaps_ms: list[float]
    drafted: int
    accepted: int
    target_passes: int
    bytes_up: int
    """The protocol's frames had this many bytes, without HTTP; 0 without an edge."""

    bytes_down: int
    edge_cpu_s: float
    stolen_s: float = 0.0
    """Other virtual machines took this core time meanwhile; see bench.host.stolen_s."""

    draft_model_tokens: int = 0
    """The draft model generated this many tokens, judged or not; 0 in older files."""

    prompt_tokens: int = 0
    read_tokens: int = 0
    """The target read this many prompt tokens, because their KV was not cached."""

    draft_model_read_tokens: int = 0
    first_draft_ms: float | None = None
    """The draft model's first token came then; None if that was not reported."""

    origins: dict[str, int] = {}
    """The answer's tokens are counted here by origin, if that was reported."""

    @property
    def after_first(self) -> tuple[float, float]:
        """Return the tokens after the first piece of text, and the seconds from it to the end.

        So no rate contains the time of reading the prompt, nor tokens drafted during it. The
        tokens of the first piece are estimated by its share of the characters. An answer in one
        piece, or within the clock's resolution, counts as a whole.
        """
        seconds = self.seconds - self.ttft_ms / 1000
        if self.first_share in (0.0, 1.0) or seconds < RESOLUTION_S:
            return self.tokens, self.seconds
        return self.tokens * (1.0 - self.first_share), seconds

    @property
    def tokens_per_s(self) -> float:
        tokens, seconds = self.after_first
        return tokens / seconds

    @property
    def shows_rate(self) -> bool:
        """False if the rate is mostly that of reading the prompt: in a scenario, where nothing
        is warmed up, this is so for an answer in one piece, which counts as a whole."""
        return root(self.family) not in FAMILIES or self.after_first[1] != self.seconds

    @property
    def asked(self) -> Key:
        return self.prompt, self.temperature, self.repeat


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A Cell is one cell of a comparison, measured or simulated."""

    arm: str
    family: str
    rtt_ms: float
    rate_mbit: float | None
    temperature: float
    prompts: int
    tokens: int
    seconds: float
    """The answers took this long together, each from request to end."""

    tokens_per_s: float
    """The answers have this rate after their first text."""

    speedup_vs_cloud: float
    """The ratios of tokens/s have this geometric mean over prompts and repeats."""

    ttft_ms_p50: float
    gap_ms_p50: float
    """Gaps between arrivals of text have this median. Text in one piece has no gap inside."""

    gap_ms_p99: float
    waiting: float = 0.0
    """A reader waits in this share of the time after the first text, see `waiting`; 0 in older
    files."""

    drafted: int
    """The target judged this many draft tokens."""

    accepted: int
    target_passes: int
    bytes_up: int
    """The protocol's frames had this many bytes; 0 without an edge."""

    bytes_down: int
    edge_cpu_s: float


class Row(Cell, frozen=True, kw_only=True):
    """A Row is one measured cell."""

    identical_to_cloud: bool
    """True if every text equals cloud's answer to the same prompt with the same seed."""


class Results(msgspec.Struct, frozen=True):
    host: Host
    commit: str
    models: dict[str, str]
    settings: Settings
    rows: list[Row]
    answers: list[Answer]


def references(answers: Iterable[Answer]) -> dict[Key, Answer]:
    """Return cloud's first answer to each question. Its rate does not depend on the link."""
    cloud_answers: dict[Key, Answer] = {}
    for answer in answers:
        if answer.arm == "cloud":
            cloud_answers.setdefault(answer.asked, answer)
    return cloud_answers


def with_rate(answers: Sequence[Answer]) -> Sequence[Answer]:
    """Return the answers that show a rate, or all if none does."""
    return [answer for answer in answers if answer.shows_rate] or answers


def link_name(rtt_ms: float, rate_mbit: float | None) -> str:
    """Return the name of a link in tables."""
    return f"{rtt_ms:g} ms" + ("" if rate_mbit is None else f", {rate_mbit:g} Mbit/s")


def same_texts(answers: Iterable[Answer], cloud: Mapping[Key, Answer]) -> list[bool]:
    """Return for each answer with a reference whether its text equals the reference's."""
    return [a.text == cloud[a.asked].text for a in answers if a.asked in cloud]


def figures(answers: Sequence[Timed], pass_ms: float) -> dict[str, Any]:
    """Return fields of a cell, computed alike for measured and simulated answers. pass_ms: the
    target's time for a token."""
    return {
        "ttft_ms_p50": round(float(np.median([answer.ttft_ms for answer in answers])), 2),
        "gap_ms_p50": round(gap_ms(answers, 50), 2),
        "gap_ms_p99": round(gap_ms(answers, 99), 2),
        "waiting": round(waiting(answers, pass_ms), 4),
        **{name: round(sum(getattr(a, name) for a in answers), 4) for name in SUMMED},
    }


def rows(answers: Sequence[Answer]) -> list[Row]:
    """Return a row for each arm, family, link and temperature, in order of their first answers.
    Answers to questions that cloud has not answered yet are left out."""
    cloud = references(answers)
    pass_ms = gap_ms(cloud.values(), 50)
    grouped: dict[tuple[object, ...], list[Answer]] = defaultdict(list)
    for a in answers:
        if a.asked in cloud:
            grouped[a.arm, a.family, a.rtt_ms, a.rate_mbit, a.temperature].append(a)
    return [_row(group, cloud, pass_ms) for group in grouped.values()]


def _row(group: Sequence[Answer], cloud: Mapping[Key, Answer], pass_ms: float) -> Row:
    first = group[0]
    timed = with_rate(group)
    ratios = [a.tokens_per_s / cloud[a.asked].tokens_per_s for a in timed]
    return Row(
        arm=first.arm, family=first.family, temperature=first.temperature,
        rtt_ms=first.rtt_ms, rate_mbit=first.rate_mbit,
        prompts=len({a.prompt for a in group}),
        tokens_per_s=round(rate(timed), 4),
        speedup_vs_cloud=round(geometric_mean(ratios), 4),
        identical_to_cloud=all(same_texts(group, cloud)),
        **figures(group, pass_ms),
    )  # fmt: skip
