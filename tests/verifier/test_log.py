"""A log can be read from any position, in any portions, and says the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from speculation.protocol.messages import Commit, Finish, Reject, TokenLogprob
from verifier.sessions.message_log import Cursor, Heard, Log

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def commits_of(sizes: list[int]) -> list[Commit]:
    found, start = [], 0
    for size in sizes:
        tokens = tuple(range(start, start + size))
        logprobs = tuple(TokenLogprob(-float(token)) for token in tokens)
        found.append(Commit(0, start, tokens, accepted=size - 1, logprobs=logprobs))
        start += size
    return found


def tokens_of(messages: list[Heard]) -> list[int]:
    return [t for m in messages if isinstance(m, Commit) for t in m.tokens]


@given(SIZES, st.data())
def test_reading_from_a_position_gives_what_follows_it(
    sizes: list[int], data: st.DataObject
) -> None:
    log = Log()
    for commit in commits_of(sizes):
        log.add(commit)
    log.add(Finish("stop"))
    position = data.draw(st.integers(0, sum(sizes)))

    messages = log.read(Cursor(position))

    assert tokens_of(messages) == list(range(position, sum(sizes)))
    assert isinstance(messages[-1], Finish)
    for commit in messages[:-1]:
        assert isinstance(commit, Commit)
        assert commit.start == commit.tokens[0]
        assert commit.logprobs is not None
        assert [-said.logprob for said in commit.logprobs] == list(commit.tokens)


@given(SIZES, st.data())
def test_a_cut_commit_keeps_the_count_of_its_drafted_tokens(
    sizes: list[int], data: st.DataObject
) -> None:
    log = Log()
    for commit in commits_of(sizes):
        log.add(commit)
    position = data.draw(st.integers(0, sum(sizes) - 1))

    first = log.read(Cursor(position))[0]

    whole = next(c for c in commits_of(sizes) if c.start <= position < c.start + len(c.tokens))
    drafted = range(whole.start, whole.start + whole.accepted)
    assert isinstance(first, Commit)
    assert first.accepted == len([at for at in drafted if at >= position])


@given(SIZES, st.lists(st.booleans(), max_size=12))
def test_portions_add_up_to_the_whole(sizes: list[int], reads: list[bool]) -> None:
    log, cursor, heard = Log(), Cursor(0), list[Heard]()
    for commit, reads_now in zip(commits_of(sizes), [*reads, *[False] * 12], strict=False):
        log.add(commit)
        if reads_now:
            heard += log.read(cursor)
    heard += log.read(cursor)

    assert tokens_of(heard) == list(range(sum(sizes)))
    assert log.read(cursor) == []


def test_a_refusal_is_read_once_and_only_while_it_is_the_latest_word() -> None:
    log, early = Log(), Cursor(0)
    log.add(Reject(0, 0, ((1, 1.0),), 0.0))

    assert [type(m) for m in log.read(early)] == [Reject]
    assert log.read(early) == []
    assert [type(m) for m in log.read(Cursor(0))] == [Reject]
    log.add(Commit(1, 0, (1,)))
    assert [type(m) for m in log.read(Cursor(0))] == [Commit]
