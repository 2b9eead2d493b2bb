"""A target without a draft in the catalogue gets a small sibling of the hub, by consent."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from local_models import hub
from local_models.catalogue import Catalogue, Family, shipped
from local_models.choosing import DraftModelChoice, HubPolicy, choose_draft, find_sibling
from local_models.hub import Hub
from local_models.llama_cpp.model import Model
from local_models.store import Store, open_store
from local_models.vocabulary import Vocabulary
from tests.local_models.conftest import NoHub, silent
from tests.local_models.gguf_files import small
from tests.local_models.hub_server import FakeHub


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeHub]:
    files = {"other": small(tmp_path, "th"), "fits": small(tmp_path, "he")}
    repositories = {f"maker/{name}": {f"m-{name}-Q4_0.gguf": files[name]} for name in files}
    with FakeHub(repositories).running() as running:
        yield running


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    (tmp_path / "target.gguf").write_bytes(small(tmp_path, "he"))
    model = Model(tmp_path / "target.gguf", vocabulary_only=True)
    found = model.vocabulary
    model.close()
    return found


@pytest.fixture
def store(server: FakeHub, tmp_path: Path) -> Store:
    drafts = ("maker/gone:Q4_0", "maker/other:Q4_0", "maker/fits:Q4_0")
    family = Family(r"toy-?\d", drafts)
    source = Hub(server.endpoint)
    return Store(tmp_path / "store", Catalogue(families={"toy": family}), (source,), source)


def test_the_first_sibling_with_the_targets_tokens_is_found_by_its_first_bytes(
    server: FakeHub, store: Store, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_FIRST_BYTES", 1000)

    search = find_sibling(store, "org/Toy-7-Instruct", vocabulary, 1e9)

    assert search.sibling is not None
    assert search.sibling.reference == "maker/fits:Q4_0"
    assert str(search.sibling).endswith(
        "m-fits-Q4_0.gguf (0.01 GB, licence mit, the same tokens)"
    )
    assert [reason.partition(":Q4_0: ")[2] for reason in search.reasons] == [
        "maker/gone: HTTP 404; is it private (HF_TOKEN)?",
        "it has other tokens than the target",
    ]
    assert not list(store.root.rglob("*.gguf"))


def test_the_token_of_the_hub_goes_to_the_hub_alone(server: FakeHub) -> None:
    server.token = "hf_secret"
    own = Hub(server.endpoint, server.token)

    (file,) = own.files("maker/fits").values()

    assert own.metadata(file).startswith(b"GGUF")
    assert server.tokens_at_storage == [""]


@pytest.mark.parametrize(
    ("target", "max_bytes", "target_bytes", "reason"),
    [
        ("Toy-7", 1e6, None, "its 0.01 GB are more than 0.00 GB"),
        ("Toy-7", 1e9, 2 << 20, "its 0.01 GB are more than 0.00 GB"),
        ("Game-7", 1e9, None, "no family of the catalogue has this target's name"),
    ],
)
def test_a_sibling_that_is_too_large_or_of_another_family_is_not_taken(
    store: Store,
    vocabulary: Vocabulary,
    target: str,
    max_bytes: float,
    target_bytes: int | None,
    reason: str,
) -> None:
    search = find_sibling(store, target, vocabulary, max_bytes, target_bytes)

    assert search.sibling is None
    assert str(search).endswith(reason)


def test_a_draft_comes_from_the_hub_only_by_consent_and_then_with_the_hubs_hash(
    server: FakeHub, store: Store, vocabulary: Vocabulary
) -> None:
    asked: list[str] = []

    def choose(consent: str, *, agree: bool = False) -> DraftModelChoice:
        policy = HubPolicy(consent, 1.0, lambda question: [asked.append(question), agree][1])  # type: ignore[arg-type]
        return choose_draft(store, "Toy-7", vocabulary, policy)

    never, refused = choose("never"), choose("ask")
    assert (never.name, refused.name) == (None, None)
    assert refused.remedy == "picospec models pull --as draft maker/fits:Q4_0"
    assert "maker/fits" in asked[0]
    assert "licence mit" in asked[0]
    assert choose("ask", agree=True).name == choose("always").name == "maker/fits:Q4_0"

    (path,) = store.pull("maker/fits:Q4_0", silent, "draft")

    asked.clear()
    assert path.resolve().name == sha256(path.read_bytes()).hexdigest()
    assert choose("ask").name == "maker/fits:Q4_0"  # it is here: nobody is asked
    assert asked == []


def test_nobody_is_asked_where_no_terminal_is(store: Store, vocabulary: Vocabulary) -> None:
    assert choose_draft(store, "Toy-7", vocabulary, HubPolicy()).name is None


def test_a_hub_that_cannot_be_reached_is_a_reason(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    family = {"toy": Family("toy", ("maker/fits", "maker/other"))}
    store = Store(tmp_path, Catalogue(families=family), (), NoHub())

    why = choose_draft(store, "toy", vocabulary, HubPolicy()).why

    assert why.count("no hub") == 1  # one question is enough


@pytest.mark.parametrize(
    ("target", "first"),
    [
        ("Qwen/Qwen3-32B", "unsloth/Qwen3-0.6B-GGUF:Q4_0"),
        ("Qwen3-Coder-30B-A3B-Instruct", "unsloth/Qwen3-0.6B-GGUF:Q4_0"),
        ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_0"),
        ("meta-llama/Llama-3.3-70B-Instruct", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_0"),
        ("Meta-Llama-3.1-8B", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_0"),
        ("Qwen/Qwen3.5-27B", "unsloth/Qwen3.5-0.8B-GGUF:Q4_0"),
        ("unsloth/Qwen3.8-27B-GGUF", "unsloth/Qwen3.5-0.8B-GGUF:Q4_0"),
        ("ibm-granite/granite-4.0-h-small", "ibm-granite/granite-4.0-350m-GGUF"),
        ("LiquidAI/LFM2.5-8B-A1B", "LiquidAI/LFM2-350M-GGUF:Q4_0"),
        ("google/gemma-4-31b-it", None),
        ("mistralai/Mistral-Small-3.2-24B", None),
        ("openai/gpt-oss-120b", None),
    ],
)
def test_the_shipped_families_recognise_targets_by_their_names(
    target: str, first: str | None
) -> None:
    assert next(iter(shipped().siblings_of(target)), None) == first


@pytest.mark.parametrize("wrong", [{"targets": "("}, {"drafts": ("no reference",)}])
def test_a_malformed_family_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"reference|unterminated"):
        Family(**({"targets": "a", "drafts": ()} | wrong))  # type: ignore[arg-type]


def test_a_pull_names_the_source_and_the_licence_before_the_download(
    server: FakeHub, tmp_path: Path
) -> None:
    said: list[str] = []
    given = {"HF_ENDPOINT": server.endpoint, "PICOSPEC_CACHE": str(tmp_path)}
    own = open_store({**given, "PICOSPEC_CONFIG_DIR": str(tmp_path)})

    own.pull("maker/fits:Q4_0", lambda what, done, total: said.append(what), "draft")

    notice = f"m-fits-Q4_0.gguf from {server.endpoint}/maker/fits, 0.01 GB, licence mit"
    assert said[:2] == [notice, "downloading"]
