"""The drafter on models with recurrent layers: it goes back by checkpoints, and reads on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_agent.draft.loading import open_context
from edge_agent.settings import EdgeSettings
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import CHECKPOINT_TOKENS, ONE_SEQUENCE, Context, Model
from local_models.llama_cpp.segments import Segment
from tests.edge_agent import drafting_promises
from tests.edge_agent.drafting_promises import (  # noqa: F401
    test_a_real_model_drafts_its_argmax_after_any_detour,
)
from tests.local_models.llama_cpp.hybrids import ARCHITECTURES, write


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def smollm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    model = Model(write(request.param, tmp_path_factory.mktemp("hybrid") / "model.gguf"))
    yield model
    model.close()


@pytest.fixture(autouse=True)
def as_an_edge_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(model: Model, tokens: int, kv: KvCache = ONE_SEQUENCE) -> Context:
        return open_context(model, EdgeSettings(), tokens, kv.sequences)

    monkeypatch.setattr(drafting_promises, "Context", opened)


def test_an_edge_goes_back_by_few_tokens_too_many(smollm: Model) -> None:
    context = open_context(smollm, EdgeSettings(), 256)
    for position in range(40):
        context.decode([Segment(0, position, [position])])

    assert 40 - 32 - CHECKPOINT_TOKENS < context.truncate(0, 40 - 32) <= 40 - 32
    context.close()
