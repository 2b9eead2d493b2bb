"""One line about a running answer, from two readings of /metrics."""

from __future__ import annotations

from cli.chat_stats import Reading, describe

METRICS = """\
# HELP picospec:generation_tokens_total Tokens generated.
# TYPE picospec:generation_tokens_total counter
picospec:generation_tokens_total 120.0
picospec:edge_draft_tokens_total 100.0
picospec:edge_accepted_tokens_total 80.0
picospec:edge_link_rtt_seconds 0.0123
picospec:edge_link_bytes_total{direction="up"} 999.0
"""


def test_a_reading_takes_its_four_numbers_and_skips_the_rest() -> None:
    assert Reading.parse(METRICS, 7.0) == Reading(7.0, 120, 100, 80, 0.0123)


def test_a_service_without_drafts_is_described_by_its_speed_alone() -> None:
    after = Reading.parse("picospec:generation_tokens_total 30", 2.0)

    assert describe(Reading(0.0), after) == "15.0 tokens/s"


def test_only_what_happened_between_the_readings_counts() -> None:
    before = Reading(1.0, 100, 90, 75, 0.01)

    line = describe(before, Reading.parse(METRICS, 3.0))

    assert line == "10.0 tokens/s · 50% of drafts accepted · RTT 12 ms"


def test_two_empty_readings_are_described_by_an_empty_line() -> None:
    assert describe(Reading(1.0), Reading(1.0)) == ""
