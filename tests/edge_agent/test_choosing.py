"""The edge fetches the draft model that it is to use, or chooses one that fits the target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.draft import loading, target_tokenizer
from edge_agent.draft.loading import FirstDraft, first_draft
from edge_agent.settings import EdgeSettings, load
from local_models.catalogue import Catalogue, Family, ModelFile, Pair
from local_models.errors import UnknownModel
from local_models.gguf import metadata_in
from local_models.hub import Hub
from local_models.sources import Folder
from local_models.store import Store
from local_models.tokenizer_file import TokenizerFile
from tests.edge_agent.fakes import FACTS, TokenizerVerifier
from tests.local_models.conftest import NoHub
from tests.local_models.gguf_files import small
from tests.local_models.hub_server import FakeHub

FILE = ModelFile("tiny.gguf", bytes=4, repository="o/r")
CATALOGUE = Catalogue({"tiny": FILE, "big": FILE}, {}, {"p": Pair("tiny", "big")})
TOKENIZER = TokenizerFile(
    "huggingface",
    b"""{"version": "1.0", "added_tokens": [], "model":
    {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}""",
)


def settings(**values: object) -> EdgeSettings:
    return load(None, {}, values)


def unreachable() -> TokenizerVerifier:
    raise AssertionError("the verifier is not needed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    return Store(tmp_path / "store", CATALOGUE, (Folder(tmp_path),), NoHub())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_tokenizer, "RETRY_S", 0.01)


def choose(
    given: EdgeSettings, store: Store, connect: Callable[[], TokenizerVerifier]
) -> FirstDraft:
    return first_draft(given, store, connect)  # type: ignore[arg-type]


def test_a_named_model_is_fetched_without_asking_the_verifier(store: Store) -> None:
    chosen = choose(settings(draft_model="p"), store, unreachable)

    assert chosen == FirstDraft("p")
    assert store.find("p", "draft").path.read_bytes() == b"GGUF"


def test_without_a_draft_model_nothing_is_fetched(store: Store) -> None:
    assert choose(settings(draft_model="none"), store, unreachable) == FirstDraft()
    assert not store.root.exists()


def test_an_unknown_name_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownModel, match="gpt"):
        choose(settings(draft_model="gpt"), store, unreachable)


@pytest.mark.system
def test_the_edge_waits_for_the_verifier_and_takes_what_fits(store: Store) -> None:
    verifier = TokenizerVerifier(TOKENIZER, away=2)

    chosen = choose(settings(), store, lambda: verifier)

    assert chosen == FirstDraft("tiny", FACTS.model)
    assert store.find("tiny", "draft").path.exists()
    assert verifier.closed


@pytest.mark.system
def test_where_nothing_fits_the_edge_goes_without(tmp_path: Path) -> None:
    verifier = TokenizerVerifier(TOKENIZER, away=2)
    empty = Store(tmp_path, Catalogue(), (), NoHub())

    assert choose(settings(), empty, lambda: verifier) == FirstDraft(None, FACTS.model)


@pytest.mark.system
@pytest.mark.parametrize(
    ("values", "fetched"),
    [
        ({"draft_from_hub": "always"}, True),
        ({}, False),  # a service has no terminal
        ({"draft_from_hub": "always", "draft_max_gb": 0.001}, False),
    ],
)
def test_a_sibling_comes_from_the_hub_where_the_settings_allow_it(
    tmp_path: Path, values: dict[str, object], fetched: bool
) -> None:
    content = small(tmp_path, "he")
    verifier = TokenizerVerifier(TokenizerFile("gguf", metadata_in(content)))
    families = {"any": Family(FACTS.model, ("maker/small:Q4_0",))}
    with FakeHub({"maker/small": {"small-Q4_0.gguf": content}}).running() as server:
        hub = Hub(server.endpoint)
        own = Store(tmp_path / "store", Catalogue(families=families), (hub,), hub)

        chosen = choose(settings(**values), own, lambda: verifier)

    assert (chosen.name is not None) == fetched
    assert [path.name for path in own.root.rglob("small*.gguf")] == [
        "small-Q4_0.gguf"
    ] * fetched


def test_where_llama_cpp_is_missing_the_edge_goes_without_and_asks_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "has_llama", lambda: False)

    assert choose(settings(), store, unreachable) == FirstDraft()
