"""Each owner has a pool of its own, as long as the owner is there, and for one target."""

from __future__ import annotations

import gc

import msgspec

from picospec.edge_agent.proposing.pools import Pools
from tests.edge_agent.engines import FACTS

PROMPT = tuple(range(20))
OTHER = msgspec.structs.replace(FACTS, vocabulary="another")


class Owner: ...


def test_one_owner_never_gets_what_another_was_answered() -> None:
    one, other, pools = Owner(), Owner(), Pools(1000)

    kept = pools.of(one, FACTS)
    assert kept is not None
    kept.add(PROMPT, [7])

    assert pools.of(one, FACTS) is kept
    for stranger, target in ((other, FACTS), (one, OTHER), (other, FACTS)):
        found = pools.of(stranger, target)
        assert found is not None
        assert found.expected(PROMPT, 9) == ()
    assert pools.of(None, FACTS) is None


def test_without_the_setting_nothing_is_kept() -> None:
    assert Pools(0).of(Owner(), FACTS) is None


def test_what_was_kept_is_gone_when_it_is_emptied_and_with_its_owner() -> None:
    one, other, pools = Owner(), Owner(), Pools(1000)
    for each in (one, other):
        pool = pools.of(each, FACTS)
        assert pool is not None
        pool.add(PROMPT, [7])

    pools.empty(one)
    emptied, left = pools.of(one, FACTS), pools.of(other, FACTS)
    assert emptied is not None
    assert left is not None
    assert (emptied.expected(PROMPT, 9), left.expected(PROMPT, 9)) == ((), (7,))
    del one, other, each
    gc.collect()

    assert not pools._kept
