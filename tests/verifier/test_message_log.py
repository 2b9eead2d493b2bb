"""A log can be read from any position, in any portions, with the same result."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import Commit, Finish, Message, Reject, TokenLogprob
from picospec.speculation.protocol.wire import Framed
from picospec.verifier.sessions.message_log import Cursor, Entry, Log

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def commits_of(sizes: list[int]) -> list[Commit]:
    found, start = [], 0
    for size in sizes:
        tokens = tuple(range(start, start + size))
        logprobs = tuple(TokenLogprob(-float(token)) for token in tokens)
        found.append(Commit(0, start, tokens, accepted=size - 1, logprobs=logprobs))
        start += size
    return found


def messages_of(entries: list[Entry]) -> list[Message]:
    """Decode the frames; each must be that of its message."""
    decoder = wire.Decoder()
    found = [message for entry in entries for message in decoder.feed(entry.frame)]
    assert [type(message) for message in found] == [type(entry.message) for entry in entries]
    return found


def tokens_of(entries: list[Entry]) -> list[int]:
    return [t for m in messages_of(entries) if isinstance(m, Commit) for t in m.tokens]


@given(SIZES, st.data())
@settings(deadline=None)
def test_reading_from_a_position_gives_what_follows_it(
    sizes: list[int], data: st.DataObject
) -> None:
    log = Log()
    for commit in commits_of(sizes):
        log.add(Framed(commit))
    log.add(Framed(Finish("stop")))
    position = data.draw(st.integers(0, sum(sizes)))

    entries = log.read(Cursor(position))

    assert tokens_of(entries) == list(range(position, sum(sizes)))
    messages = messages_of(entries)
    assert isinstance(messages[-1], Finish)
    for commit in messages[:-1]:
        assert isinstance(commit, Commit)
        assert commit.start == commit.tokens[0]
        assert commit.logprobs is not None
        assert [-each.logprob for each in commit.logprobs] == list(commit.tokens)


@given(SIZES, st.data())
@settings(deadline=None)
def test_a_cut_commit_keeps_the_count_of_its_drafted_tokens(
    sizes: list[int], data: st.DataObject
) -> None:
    log = Log()
    for commit in commits_of(sizes):
        log.add(Framed(commit))
    position = data.draw(st.integers(0, sum(sizes) - 1))

    first = log.read(Cursor(position))[0].message

    whole = next(c for c in commits_of(sizes) if c.start <= position < c.start + len(c.tokens))
    drafted = range(whole.start, whole.start + whole.accepted)
    assert isinstance(first, Commit)
    assert first.accepted == len([at for at in drafted if at >= position])


@given(SIZES, st.lists(st.booleans(), max_size=12))
@settings(deadline=None)
def test_portions_add_up_to_the_whole(sizes: list[int], reads: list[bool]) -> None:
    log, cursor, entries = Log(), Cursor(0), list[Entry]()
    for commit, reads_now in zip(commits_of(sizes), [*reads, *[False] * 12], strict=False):
        log.add(Framed(commit))
        if reads_now:
            entries += log.read(cursor)
    entries += log.read(cursor)

    assert tokens_of(entries) == list(range(sum(sizes)))
    assert log.read(cursor) == []


def test_a_reject_is_read_once_and_only_while_it_is_the_latest_message() -> None:
    log, early = Log(), Cursor(0)
    log.add(Framed(Reject(0, 0, 0, ((1, 1.0),), 0.0)))

    assert [type(m.message) for m in log.read(early)] == [Reject]
    assert log.read(early) == []
    assert [type(m.message) for m in log.read(Cursor(0))] == [Reject]
    log.add(Framed(Commit(1, 0, (1,))))
    assert [type(m.message) for m in log.read(Cursor(0))] == [Commit]


def test_readers_get_the_bytes_that_came_in_and_only_a_cut_commit_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = counted_encodings(monkeypatch)
    log = Log()
    frames = [b"first", b"second", b"finish"]
    messages = [Commit(0, 0, (1, 2)), Commit(0, 2, (3, 4)), Finish("stop")]
    for message, frame in zip(messages, frames, strict=True):
        log.add(Framed(message, frame))

    for _ in range(3):
        assert [entry.frame for entry in log.read(Cursor(0))] == frames
        assert [entry.frame for entry in log.read(Cursor(2))] == frames[1:]
    assert encoded == []

    cut = log.read(Cursor(3))
    assert [cut[0].message, cut[1].frame] == [Commit(0, 3, (4,)), b"finish"]
    assert list(wire.Decoder().feed(cut[0].frame)) == [Commit(0, 3, (4,))]
    assert encoded == [Commit(0, 3, (4,))]


def test_a_message_without_a_frame_is_encoded_once_for_all_readers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = counted_encodings(monkeypatch)
    log, message = Log(), Commit(0, 0, (1, 2))
    log.add(Framed(message))

    frames = {log.read(Cursor(0))[0].frame for _ in range(3)}

    assert frames == {wire.encode.__wrapped__(message)}  # type: ignore[attr-defined]
    assert encoded == [message]


def counted_encodings(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Return a list that each message is added to when it is encoded."""
    encoded: list[Message] = []
    encode = wire.encode

    @functools.wraps(encode)
    def counting(message: Message) -> bytes:
        encoded.append(message)
        return encode(message)

    monkeypatch.setattr(wire, "encode", counting)
    return encoded


@given(SIZES, st.integers(1, 30), st.data())
@settings(deadline=None)
def test_a_log_may_begin_after_tokens_that_another_session_committed(
    sizes: list[int], start: int, data: st.DataObject
) -> None:
    log = Log(start)
    for commit in commits_of([start, *sizes])[1:]:
        log.add(Framed(commit))
    end = start + sum(sizes)
    position = data.draw(st.integers(start, end))

    assert tokens_of(log.read(Cursor(position))) == list(range(position, end))
