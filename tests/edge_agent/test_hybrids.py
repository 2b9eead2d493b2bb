"""The drafter on models with recurrent layers: it goes back by checkpoints, and reads on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_agent.draft.loading import open_context
from edge_agent.settings import EdgeSettings
from local_models.llama_cpp.model import Context, Model
from tests.edge_agent import test_llama_models
from tests.edge_agent.test_llama_models import (  # noqa: F401
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
    def opened(model: Model, tokens: int, sequences: int = 1) -> Context:
        return open_context(model, EdgeSettings(), tokens, sequences)

    monkeypatch.setattr(test_llama_models, "Context", opened)
