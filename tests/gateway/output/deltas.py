"""Deltas of a model's bytes, and what is shown of them by one that reasons and calls tools."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.output.detokenise import Detokeniser, Piece, StopConditions, TextDelta
from gateway.output.output_format import CallRules, OutputFormats
from gateway.ports import Delta, Statistics
from speculation.messages import TokenLogprob, Totals
from tests.gateway.output.reading import TOOLS, split
from tests.gateway.scripted import END, ByteTokenizer

TEMPLATE = "<think></think><tool_call></tool_call>"


def parse(
    deltas: Sequence[Delta], stops: Sequence[str] = (), *, parallel: bool = True
) -> list[TextDelta]:
    """Return what the Deltas show, up to the finish."""
    output_format = OutputFormats().find(ByteTokenizer(template=TEMPLATE))

    def detokeniser(piece: Piece) -> Detokeniser:
        return Detokeniser(piece, StopConditions(frozenset({END}), stops))

    reader = output_format.reader(detokeniser, (), CallRules(TOOLS, parallel))
    shown = []
    for delta in deltas:
        shown.append(reader.read(delta))
        if shown[-1].finish is not None:
            break
    return shown


def grouped(data: bytes, cuts: Sequence[int] = (), *, logprobs: bool = False) -> list[Delta]:
    """Return Deltas with the bytes as tokens, END as the last token, and a finish."""
    tokens = [*data, END]
    return [
        Delta(
            tuple(tokens[at] for at in group),
            tuple(TokenLogprob(-1.0, ()) for _ in group) if logprobs else None,
            finish="stop" if group.stop == len(tokens) else None,
            statistics=Statistics(Totals(group.stop)),
        )
        for group in split(range(len(tokens)), cuts)
    ]
