"""Keys are hashes with names and limits; a file of them is read again when it has changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from edge_agent.settings import load
from gateway.errors import RateLimited, Unauthorized
from gateway.keys import MAX_FILE_BYTES, InvalidKeys, KeyLimits, add_key, digest_of
from gateway.metrics import Metrics
from gateway.output.detokenise import TextDelta
from gateway.request_context import RequestContext, TokenTimes, Usage
from gateway.tenant_limits import Tenant, TenantMetrics
from gateway.tenants import FORGET_S, SALT_SECRET, Tenants, identity_of_key
from tests.gateway.scripted import table

ANN, BEN = "key of ann", "key of ben"


def written(file: Path, entries: Mapping[str, str], more: str = "") -> Path:
    """Write a file of keys, by their names; `more` goes into each table."""
    file.write_text("".join(table(name, key, more) for name, key in entries.items()))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file has the key of Ann alone."""
    return written(tmp_path / "keys.toml", {"ann": ANN})


def tenants(file: Path | None, *keys: str, limits: KeyLimits | None = None) -> Tenants:
    digests = load(None, {"PICOSPEC_API_KEYS": ",".join(keys)}, {}).key_digests
    return Tenants(digests, file, limits or KeyLimits(), TenantMetrics(CollectorRegistry()))


def holder(found: Tenants, key: str, now: float = 0.0) -> str | None:
    """The name of the tenant that a key belongs to."""
    try:
        return found.of(key, now).name
    except Unauthorized:
        return None


def test_keys_of_the_environment_are_numbered_and_those_of_a_file_have_names(
    tmp_path: Path,
) -> None:
    file = written(tmp_path / "keys.toml", {"ann": ANN, "ben": BEN})
    found = tenants(file, "first", "second")

    keys = ("first", "second", ANN, BEN, "", "ann", "First")
    names = [holder(found, key) for key in keys]

    assert names == ["key-1", "key-2", "ann", "ben", None, None, None]


def test_a_file_without_keys_admits_nobody_and_no_file_everybody(tmp_path: Path) -> None:
    assert holder(tenants(written(tmp_path / "keys.toml", {})), "any") is None
    assert holder(tenants(None), "any") == "anonymous"


def test_a_changed_file_counts_within_a_second_and_not_more_often(file: Path) -> None:
    found = tenants(file)
    assert holder(found, ANN, now=10.0) == "ann"

    written(file, {"ben": BEN})

    assert holder(found, ANN, now=10.9) == "ann"
    with capture_logs() as logs:
        assert holder(found, ANN, now=11.0) is None
    assert holder(found, BEN, now=11.0) == "ben"
    assert [line["event"] for line in logs] == ["keys_read"]


def test_a_file_put_in_place_of_another_counts(file: Path, tmp_path: Path) -> None:
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    found = tenants(file)

    other = written(tmp_path / "other.toml", {"ben": ANN})
    os.utime(other, ns=times)
    other.replace(file)

    assert holder(found, ANN, now=1.0) == "ben"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[ann", "table declaration"),
        ('[ann]\nkey = "hunter2"', "ann.sha256: Field required"),
        ('[ann]\nsha256 = "hunter2"', "ann.sha256: String should match"),
        ('["an n"]\nsha256 = "hunter2"', "an n"),
        (f'[key-1]\nsha256 = "{"0" * 64}"', "same name"),
        (f'[a]\nsha256 = "{"0" * 64}"\n[b]\nsha256 = "{"0" * 64}"', "are the same"),
        (f'[a]\nsha256 = "{"0" * 64}"\nsessions = 0', "a.sessions"),
        (None, "No such file"),
        ("#" * (MAX_FILE_BYTES + 1), "at most"),
    ],
)
def test_a_bad_file_leaves_the_keys_as_they_were_and_its_content_out_of_the_log(
    file: Path, text: str | None, reason: str
) -> None:
    found = tenants(file, "one")

    file.unlink() if text is None else file.write_text(text)

    with capture_logs() as logs:
        assert holder(found, ANN, now=1.0) == "ann"
        assert holder(found, ANN, now=2.0) == "ann"
    (line,) = logs
    assert line["log_level"] == "error"
    assert reason in line["error"]
    assert "hunter2" not in str(line)

    written(file, {"ben": BEN})
    assert [holder(found, key, now=3.0) for key in (ANN, BEN)] == [None, "ben"]


def test_a_key_that_was_taken_away_works_no_longer_than_the_file_cannot_be_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: Path, *_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    registry = CollectorRegistry()
    found = Tenants((), file, KeyLimits(), TenantMetrics(registry))
    written(file, {"ben": BEN})

    with monkeypatch.context() as during, capture_logs() as logs:
        during.setattr(Path, "open", fails)
        kept = [holder(found, ANN, now=float(second)) for second in range(1, 30)]
    unread = [registry.get_sample_value("picospec:keys_file_unread")]
    after = holder(found, ANN, now=30.0)
    unread.append(registry.get_sample_value("picospec:keys_file_unread"))

    assert kept == ["ann"] * 29
    assert [line["event"] for line in logs] == ["keys_not_read"]
    assert after is None
    assert unread == [1.0, 0.0]


def test_a_file_that_is_written_in_place_refuses_nobody_and_one_that_stays_empty_all(
    file: Path,
) -> None:
    found = tenants(file)

    file.write_text("")
    truncated = holder(found, ANN, now=1.0)
    written(file, {"ann": ANN, "ben": BEN})
    complete = [holder(found, key, now=2.0) for key in (ANN, BEN)]
    file.write_text("")
    emptied = [holder(found, ANN, now=now) for now in (3.0, 4.0)]

    assert truncated == "ann"
    assert complete == ["ann", "ben"]
    assert emptied == ["ann", None]


def test_a_tenant_whose_name_stays_goes_on_and_gets_other_limits(tmp_path: Path) -> None:
    limits = "sessions = 1\nrequests_a_minute = 1"
    file = written(tmp_path / "keys.toml", {"ann": ANN}, limits)
    found = tenants(file)
    ann: Tenant = found.of(ANN, 0.0)
    ann.begin(0.0)
    ann.admit(0.0)

    written(file, {"ann": "her next key"}, "sessions = 3")

    assert found.of("her next key", 1.0) is ann
    ann.begin(1.0, 2)
    ann.admit(1.0)
    assert ann.limits == KeyLimits(sessions=3)


def test_a_name_that_comes_back_soon_is_the_same_tenants_and_later_somebody_elses(
    tmp_path: Path,
) -> None:
    file = written(tmp_path / "keys.toml", {"ann": ANN, "ben": BEN})
    found = tenants(file)
    ann = found.of(ANN, 0.0)

    written(file, {"ben": BEN})
    assert holder(found, ANN, now=2.0) is None
    written(file, {"ann": ANN, "ben": BEN}, "sessions = 1")
    assert found.of(ANN, 2.0 + FORGET_S) is ann
    written(file, {"ben": BEN})
    for now in (100.0, 100.0 + FORGET_S):
        assert holder(found, ANN, now=now) is None
    written(file, {"ann": "another's key", "ben": BEN})
    other = found.of("another's key", 101.0 + FORGET_S)

    assert (other.name, other is ann) == ("ann", False)
    assert len({other.identity, ann.identity, found.of(BEN, 161.0).identity, "ann"}) == 4


def test_identities_are_those_of_whoever_has_the_same_secret() -> None:
    shared = {SALT_SECRET: "of two replicas"}
    digest = digest_of(ANN.encode())

    assert identity_of_key(digest, shared) == identity_of_key(digest, dict(shared))
    assert identity_of_key(digest, drawn := {}) != identity_of_key(digest, shared)
    assert identity_of_key(digest, drawn) == identity_of_key(digest, dict(drawn))


def test_a_key_has_the_services_limits_where_it_has_none_of_its_own(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml", {"ann": ANN}, "sessions = 9")
    usual = KeyLimits(sessions=1, requests_a_minute=2)
    found = tenants(file, "one", limits=usual)

    assert found.of("one", 0.0).limits == usual
    assert found.of(ANN, 0.0).limits == KeyLimits(sessions=9, requests_a_minute=2)


@pytest.mark.parametrize("name", ["ann", "an n", "", "x]\n[y"])
def test_a_name_that_is_taken_or_is_none_is_not_added(tmp_path: Path, name: str) -> None:
    file = tmp_path / "keys.toml"
    add_key(file, "ann", KeyLimits())
    before = file.read_text()

    with pytest.raises(InvalidKeys):
        add_key(file, name, KeyLimits())

    assert file.read_text() == before


# What a tenant may use, on a clock that the test holds.


def tenant(**limits: int) -> Tenant:
    return Tenant("ann", KeyLimits(**limits), TenantMetrics(CollectorRegistry()))


@example([10_000.0, 0.0, 0.0], 1)  # what is not used of a minute is not saved for the next
@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.integers(1, 9))
def test_whoever_comes_again_when_told_to_is_let_in_and_no_minute_has_twice_the_limit(
    pauses: list[float], a_minute: int
) -> None:
    ann, now, admitted = tenant(requests_a_minute=a_minute), 0.0, []
    for pause in pauses:
        now += pause
        try:
            ann.admit(now)
        except RateLimited as limited:
            now += limited.retry_after_s
            ann.admit(now)
        admitted.append(now)

    for begin in admitted:
        within = sum(begin <= other < begin + 60.0 for other in admitted)
        assert within <= 2 * a_minute


def test_tokens_are_charged_once_and_while_the_answer_that_takes_them_runs() -> None:
    ann = tenant(tokens_a_minute=60)
    times = TokenTimes(lambda: 0.0, 0.0)
    running = RequestContext("r", Usage(Metrics(CollectorRegistry()), times), ann)
    running.begin_answers(1)

    running.count(0, TextDelta("", 90))

    with pytest.raises(RateLimited, match="60 tokens a minute") as limited:
        ann.begin(0.0)
    assert limited.value.retry_after_s == 31
    running.close()
    ann.begin(31.0)
