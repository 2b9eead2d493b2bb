"""A pool lasts as long as its owner; test_engine_prediction.py says who gets what of it."""

from __future__ import annotations

import gc

from picospec.edge_agent.proposals import Pools
from picospec.speculation.ngrams import Pool
from tests.edge_agent.engines import FACTS

PROMPT = tuple(range(20))


class Owner: ...


def test_what_was_kept_is_gone_when_it_is_emptied_and_with_its_owner() -> None:
    one, other, pools = Owner(), Owner(), Pools(1000)

    def pool_of(owner: Owner) -> Pool:
        pool = pools.of(owner, FACTS)
        assert pool is not None
        return pool

    for each in (one, other):
        pool_of(each).add(PROMPT, [7])

    pools.empty(one)
    assert pool_of(one).expected(PROMPT, 9) == ()
    assert pool_of(other).expected(PROMPT, 9) == (7,)
    del one, other, each
    gc.collect()

    assert not pools._kept
