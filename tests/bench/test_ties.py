"""Where answers part, and by how little: worked by hand."""

from __future__ import annotations

import pytest

from picospec.bench.identity.comparison import RESOLUTION, Divergence, TokenScores, divergence


def quiet(position: int, piece: bytes) -> float:
    return 0.0


def row(token: bytes, **logprobs: float) -> TokenScores:
    """A token and the likeliest there."""
    top = sorted(((k.encode(), v) for k, v in logprobs.items()), key=lambda pair: -pair[1])
    return TokenScores(token, dict(top)[token], tuple(top))


def test_equal_answers_part_nowhere() -> None:
    answer = [row(b"a", a=-0.5), row(b"b", b=-0.25)]

    assert divergence(answer, list(answer), quiet) is None


def test_a_parting_tells_both_gaps_in_steps_of_the_best_logits() -> None:
    plain = [row(b"a", a=-0.5), row(b"b", b=-0.75, c=-0.875, d=-1.25)]
    edge = [row(b"a", a=-0.5), row(b"c", b=-0.75, c=-0.75, d=-1.25)]

    found = divergence(plain, edge, quiet)

    assert found == Divergence(1, "b", "c", plain_gap=0.125, edge_gap=0.0, step=0.125)
    assert found.near_tie


def test_the_noise_of_both_tokens_counts() -> None:
    plain, edge = [row(b"b", b=-2.0, c=-0.5)], [row(b"c", b=-2.0, c=-0.5)]

    found = divergence(plain, edge, lambda position, piece: {b"b": 1.75, b"c": 0.0}[piece])

    assert found is not None
    assert found.plain_gap == pytest.approx(0.25)
    assert found.edge_gap == pytest.approx(-0.25)


def test_a_token_that_was_not_among_the_likeliest_has_no_gap() -> None:
    found = divergence([row(b"b", b=-0.5)], [row(b"z", z=-0.5)], quiet)

    assert found is not None
    assert found.plain_gap is None
    assert not found.near_tie


def test_an_answer_that_ends_sooner_parts_where_it_ends() -> None:
    longer = [row(b"a", a=-0.5), TokenScores(b"b", -0.5, ((b"b", -0.5), (b"", -0.75)))]

    found = divergence(longer[:1], longer, quiet)

    assert found == Divergence(1, "", "b", plain_gap=None, edge_gap=0.25, step=0.25)


def test_logits_of_float32_lie_on_no_grid() -> None:
    assert row(b"a", a=-0.123456, b=-0.987654, c=-2.345678).step == RESOLUTION


def test_a_gap_of_more_than_a_step_in_each_logit_is_no_near_tie() -> None:
    plain, edge = [row(b"b", b=-0.5, c=-0.875, d=-1.0)], [row(b"c", b=-0.875, c=-0.5)]

    found = divergence(plain, edge, quiet)

    assert found is not None
    assert found.step == 0.125
    assert not found.near_tie
