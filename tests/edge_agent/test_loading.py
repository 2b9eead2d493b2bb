"""The edge gets the target's tokenizer, and finds, loads and frees draft models that fit it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from edge_agent.draft import loading, target_tokenizer
from edge_agent.draft.drafter import CannotDraft
from edge_agent.draft.late import AGAIN_S, Drafts, LateDrafter
from edge_agent.draft.loading import FirstDraft, first_draft
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.settings import EdgeSettings, load
from gateway.errors import EngineFault
from local_models.catalogue import Catalogue, Family, ModelFile, Pair
from local_models.errors import NoRoom, UnknownModel
from local_models.gguf import metadata_in
from local_models.hub import Hub
from local_models.sources import Folder
from local_models.store import Store, open_store
from local_models.tokenizer_cache import TokenizerCache
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from speculation.messages import Commit, Finish
from tests.edge_agent.cross_vocabulary import Name, model
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    FakeVerifiers,
    OneSlot,
    ScriptedLink,
    TokenizerVerifier,
    deltas,
    engine,
    quiet,
    scripted,
)
from tests.local_models.conftest import NoHub
from tests.local_models.gguf_files import small
from tests.local_models.hub_server import FakeHub

TOKENIZER = TokenizerFile(
    "huggingface",
    b"""{"version": "1.0", "added_tokens": [], "model":
    {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}""",
)

# The target's tokenizer.


@pytest.mark.models
@pytest.mark.parametrize(
    ("draft", "relation"), [("smollm2", "identical"), ("qwen", "different")]
)
async def test_the_tokenizer_is_sent_once_for_each_target_and_related_to_the_draft_model(
    tmp_path: Path, draft: Name, relation: str
) -> None:
    file = tokenizer_file(open_store(os.environ).find("smollm2", "target").path)
    verifier: Any = TokenizerVerifier(file)

    for _ in range(2):
        target = TargetTokenizer(verifier, TokenizerCache(tmp_path), model(draft))
        assert target.relation is None
        first = await target()
        assert first.vocabulary == model("smollm2").vocabulary
        assert (target.relation, await target()) == (relation, first)
        assert (target.translation is not None) == (relation == "different")
    assert verifier.sent == 1

    verifier.serve(msgspec.structs.replace(file, template="{{ messages[0].content }}"))
    assert (await target()).template != first.template


async def test_a_tokenizer_that_cannot_be_used_is_logged_once_and_fetched_ever_more_rarely(
    tmp_path: Path,
) -> None:
    verifier: Any = TokenizerVerifier(TOKENIZER, packed=b"none")
    target = TargetTokenizer(verifier, TokenizerCache(tmp_path), None)

    with pytest.raises(EngineFault, match="tokenizer") as raised:
        await target()
    with capture_logs() as logs, pytest.raises(TimeoutError):
        async with asyncio.timeout(4 + 8 + 16 + 32 + 60 + 60 + 1):
            await target.introduce()

    assert raised.value.error_code == "bad_tokenizer"
    assert not os.listdir(tmp_path)
    assert verifier.sent == 1 + 7
    (line,) = logs
    assert "cannot be read" in line["reason"]


# The draft model to begin with.

FILE = ModelFile("tiny.gguf", bytes=4, repository="o/r")
CATALOGUE = Catalogue({"tiny": FILE, "big": FILE}, {}, {"p": Pair("tiny", "big")})


def unreachable() -> TokenizerVerifier:
    raise AssertionError("the verifier is not needed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    return Store(tmp_path / "store", CATALOGUE, (Folder(tmp_path),), NoHub())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_tokenizer, "RETRY_S", 0.01)


def choose(
    store: Store, connect: Callable[[], TokenizerVerifier], **values: object
) -> FirstDraft:
    return first_draft(load(None, {}, values), store, connect)  # type: ignore[arg-type]


def test_a_named_model_is_fetched_without_asking_the_verifier(store: Store) -> None:
    chosen = choose(store, unreachable, draft_model="p")

    assert chosen == FirstDraft("p")
    assert store.find("p", "draft").path.read_bytes() == b"GGUF"


@pytest.mark.parametrize(("draft_model", "has_llama"), [("none", True), ("auto", False)])
def test_without_a_draft_model_or_llama_cpp_nothing_is_fetched_and_nobody_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch, draft_model: str, has_llama: bool
) -> None:
    monkeypatch.setattr(loading, "has_llama", lambda: has_llama)

    assert choose(store, unreachable, draft_model=draft_model) == FirstDraft()
    assert not store.root.exists()


def test_an_unknown_name_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownModel, match="gpt"):
        choose(store, unreachable, draft_model="gpt")


@pytest.mark.system
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fits", [True, False])
def test_the_edge_waits_for_the_verifier_and_takes_what_fits_or_goes_without(
    store: Store, fits: bool
) -> None:
    verifier = TokenizerVerifier(TOKENIZER, away=2)
    if not fits:
        store = Store(store.root, Catalogue(), (), NoHub())

    chosen = choose(store, lambda: verifier)

    assert chosen == FirstDraft("tiny" if fits else None, FACTS.model)
    assert not fits or store.find("tiny", "draft").path.exists()
    assert verifier.closed


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

        chosen = choose(own, lambda: verifier, **values)

    assert (chosen.name is not None) == fetched
    assert [path.name for path in own.root.rglob("small*.gguf")] == [
        "small-Q4_0.gguf"
    ] * fetched


# Draft models are loaded when answers need them, and freed when none does.

SMALL, LARGE = "smollm2-135m-q4_0", "smollm2-135m-q8_0"


class Late(OneSlot):
    """A Drafter that is not there before `comes` is set. fails: it never comes."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.is_late = True
        self.comes = asyncio.Event()
        self._fails = fails

    async def wake(self) -> None:
        await self.comes.wait()
        if self._fails:
            raise CannotDraft("it cannot be loaded")
        self.is_late = False


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_begins_without_its_draft_model_and_drafts_once_it_is_there(
    fails: bool,
) -> None:
    drafter, before = Late(fails=fails), list[int]()

    async def comes(link: ScriptedLink) -> None:
        before.append(len(drafter.slot.contexts))
        drafter.comes.set()

    first, rest = Commit(0, 0, (3,)), Commit(0, 1, (4,))
    script = scripted(first, quiet, comes, quiet, rest, Finish("stop"))
    received = await deltas(engine(FakeVerifiers(script), drafter=drafter).generate(JOB))

    assert [token for delta in received for token in delta.tokens] == [3, 4]
    assert before == [0]
    assert (len(drafter.slot.contexts) > 0, drafter.slot.left) == (not fails, not fails)


class Loading:
    """Drafts whose models take a while to load, or fail with an error."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.names: list[str] = []

    async def load(self, name: str) -> object:
        self.names.append(name)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop()
        drafter = OneSlot()
        return SimpleNamespace(model=object(), drafter=drafter, freed=[], size_bytes=7)

    def use(self, draft: object) -> None:
        """Note nothing."""


class Source:
    """A TargetTokenizer's part in it."""

    draft: object = None

    async def pair(self, draft: object) -> None:
        self.draft = draft

    def part(self) -> None:
        self.draft = None


def late(
    drafts: Loading, chosen: str | None = "small", now: Callable[[], float] = float
) -> LateDrafter:
    async def choose() -> str | None:
        return chosen

    given: Any = drafts
    source: Any = Source()
    return LateDrafter(given, source, choose, now)


async def test_one_load_serves_all_answers_that_wait_for_it() -> None:
    drafts = Loading()
    drafter = late(drafts)

    assert (drafter.is_late, drafter.state, drafter.take((1,))) == (True, "asleep", None)
    await asyncio.gather(drafter.wake(), drafter.wake())
    assert (drafter.is_late, drafter.state, drafts.names) == (False, "loaded", ["small"])
    assert drafter.take((1,)) is not None


async def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_while() -> None:
    now, drafts = [0.0], Loading(ValueError("no"), NoRoom("full"))
    drafter = late(drafts, now=lambda: now[0])

    for reason in ("full", "no"):
        with capture_logs() as logs, pytest.raises(CannotDraft):
            await drafter.wake()
        assert [(each["event"], each["reason"]) for each in logs] == [("no drafts", reason)]
        assert (drafter.is_late, drafter.state) == (False, "failed")
        now[0] += AGAIN_S
        assert (drafter.is_late, drafter.state) == (True, "asleep")
    await drafter.wake()
    assert drafter.state == "loaded"


async def test_a_target_that_no_draft_model_fits_is_asked_once() -> None:
    drafter = late(Loading(), None)

    with pytest.raises(CannotDraft):
        await drafter.wake()
    assert not drafter.is_late


@pytest.mark.models
async def test_the_model_that_was_not_used_for_longest_goes_but_none_that_is_used() -> None:
    store = open_store(os.environ)
    for name in (SMALL, LARGE):
        loading.pull_if_missing(name, store)
    settings = load(None, {}, {"context_tokens": 64, "slots": 1, "draft_memory_bytes": ROOM})
    now = [0.0]
    drafts = Drafts(settings, store, clock=lambda: now[0])
    parted = list[str]()

    first = await drafts.load(SMALL)
    first.freed.append(lambda: parted.append(SMALL))
    slot = first.drafter.take((1, 2, 3))
    with pytest.raises(NoRoom, match="it needs"):
        await drafts.load(LARGE)
    assert drafts.loaded(SMALL) is first
    assert slot is not None
    slot.leave()
    size_bytes, model = first.size_bytes, weakref.ref(first.model)
    del first, slot
    second = await drafts.load(LARGE)
    assert model() is None  # its memory is free
    assert (drafts.loaded(SMALL), parted, await drafts.load(LARGE)) == (None, [SMALL], second)
    with pytest.raises(NoRoom, match="freed for another"):  # or they would take turns
        await drafts.load(SMALL)
    now[0] = AGAIN_S
    assert (await drafts.load(SMALL)).size_bytes == size_bytes
    assert drafts.loaded(LARGE) is None
    await drafts.close()


ROOM = 256 << 20
"""Room for either of both, and not for both."""


def test_a_draft_model_that_a_pair_names_is_shown_by_its_own_name(tmp_path: Path) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
    drafter = late(Drafts(EdgeSettings(), store))  # type: ignore[arg-type]

    drafter.name = "smollm2"

    assert (drafter.about() or {})["model"] == "smollm2-135m-q4_0"
