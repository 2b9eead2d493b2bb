"""What a run found: every answer as it came, and the rows made of them.

A file holds {"host", "commit", "models", "link", "settings", "rows", "answers"}. A row stands
for one arm, family, link and temperature; its figures are over all its prompts and repeats.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.run.host import Host

Settings = dict[str, str | int | float | list[str]]


class Answer(msgspec.Struct, frozen=True):
    """One measured answer. Seconds and milliseconds count from the moment of asking."""

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
    """Of the text, what came first and at once; 0 without text."""

    seconds: float
    ttft_ms: float
    gaps_ms: list[float]
    drafted: int
    accepted: int
    target_passes: int
    guessed: int
    bytes_up: int
    bytes_down: int
    link_bytes_up: int
    link_bytes_down: int
    edge_cpu_s: float
    stolen_s: float = 0.0
    """What other virtual machines had of the cores meanwhile, see bench.run.host.stolen_s."""

    @property
    def later(self) -> tuple[float, float]:
        """Tokens after the first piece of text, and seconds from it to the end.

        So the time to read the prompt is in no rate, and neither is what could be drafted
        meanwhile. The first piece's tokens are estimated by its share of the characters. The
        whole answer, if it came in one piece.
        """
        if self.first_share in (0.0, 1.0):
            return self.tokens, self.seconds
        return self.tokens * (1.0 - self.first_share), self.seconds - self.ttft_ms / 1000

    @property
    def tokens_per_s(self) -> float:
        tokens, seconds = self.later
        return tokens / seconds

    @property
    def asked(self) -> tuple[str, float, int]:
        """What was asked: the same for every arm and link."""
        return self.prompt, self.temperature, self.repeat

    @property
    def row(self) -> tuple[str, str, float, float | None, float]:
        return self.arm, self.family, self.rtt_ms, self.rate_mbit, self.temperature


class Row(msgspec.Struct, frozen=True):
    arm: str
    family: str
    rtt_ms: float
    rate_mbit: float | None
    temperature: float
    prompts: int
    tokens: int
    seconds: float
    """From asking to the end."""

    tokens_per_s: float
    """Once the first text is there (Answer.later)."""

    speedup_vs_cloud: float
    """Geometric mean over prompts and repeats of the ratio of tokens/s."""

    ttft_ms_p50: float
    gap_ms_p50: float
    """Between two arrivals of text: what comes in one piece has no gap inside."""

    gap_ms_p99: float
    drafted: int
    """Draft tokens that the target judged."""

    accepted: int
    target_passes: int
    bytes_up: int
    """Frames of the protocol; 0 where there is no edge."""

    bytes_down: int
    edge_cpu_s: float
    identical_to_cloud: bool
    """Every text is what `cloud` said to the same prompt with the same seed."""


class Results(msgspec.Struct, frozen=True):
    host: Host
    commit: str
    models: dict[str, str]
    link: dict[str, float | None]
    settings: Settings
    rows: list[Row]
    answers: list[Answer]

    def save(self, path: Path) -> None:
        """Write the file at once or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))
        os.replace(partial, path)


def load(path: Path) -> Results:
    """Read what `save` wrote. Raises OSError, or ValueError that names the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None


def references(answers: Iterable[Answer]) -> dict[tuple[str, float, int], Answer]:
    """Return cloud's first answer to each question; its rate does not depend on the link."""
    found: dict[tuple[str, float, int], Answer] = {}
    for answer in answers:
        if answer.arm == "cloud":
            found.setdefault(answer.asked, answer)
    return found


def speedup(answer: Answer, cloud: Mapping[tuple[str, float, int], Answer]) -> float:
    """Return the ratio of tokens/s. Raises KeyError when cloud was not asked the same."""
    return answer.tokens_per_s / cloud[answer.asked].tokens_per_s


def rate(answers: Sequence[Answer]) -> float:
    """Return the tokens per second of these answers together."""
    tokens, seconds = zip(*(answer.later for answer in answers), strict=True)
    return float(sum(tokens) / sum(seconds))


def rows(answers: Sequence[Answer]) -> list[Row]:
    """Return a row for each arm, family, link and temperature, in the order they came in.

    Answers to what cloud has not been asked yet are left out.
    """
    cloud = references(answers)
    grouped: dict[tuple[str, str, float, float | None, float], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.asked in cloud:
            grouped[answer.row].append(answer)
    return [_row(group, cloud) for group in grouped.values()]


def _row(group: Sequence[Answer], cloud: Mapping[tuple[str, float, int], Answer]) -> Row:
    tokens, seconds = sum(a.tokens for a in group), sum(a.seconds for a in group)
    gaps_ms = [gap for a in group for gap in a.gaps_ms] or [0.0]
    ratios = [speedup(a, cloud) for a in group]
    arm, family, rtt_ms, rate_mbit, temperature = group[0].row
    return Row(
        arm,
        family,
        rtt_ms,
        rate_mbit,
        temperature,
        prompts=len({a.prompt for a in group}),
        tokens=tokens,
        seconds=round(seconds, 4),
        tokens_per_s=round(rate(group), 4),
        speedup_vs_cloud=round(float(np.exp(np.mean(np.log(ratios)))), 4),
        ttft_ms_p50=round(float(np.median([a.ttft_ms for a in group])), 2),
        gap_ms_p50=round(float(np.percentile(gaps_ms, 50)), 2),
        gap_ms_p99=round(float(np.percentile(gaps_ms, 99)), 2),
        drafted=sum(a.drafted for a in group),
        accepted=sum(a.accepted for a in group),
        target_passes=sum(a.target_passes for a in group),
        bytes_up=sum(a.bytes_up for a in group),
        bytes_down=sum(a.bytes_down for a in group),
        edge_cpu_s=round(sum(a.edge_cpu_s for a in group), 3),
        identical_to_cloud=all(a.text == cloud[a.asked].text for a in group),
    )
