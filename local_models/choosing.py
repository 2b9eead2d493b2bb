"""Chooses a draft model that fits a target: of the catalogue, or else a sibling on the hub.

A catalogue lists families: by what name a target is recognised, and which repositories have a
small model of its vocabulary. Nothing of them is pinned: the hub tells size, licence and
sha256, and the first bytes of a file have its vocabulary, which is compared with the target's
token by token before the rest is fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm

from local_models.catalogue import ModelFile
from local_models.errors import ModelError, NotPulled, Unreachable, Unsuitable
from local_models.llama_cpp.model import Model
from local_models.references import parse_reference
from local_models.store import Store
from local_models.tokenizer_cache import TokenizerCache
from local_models.tokenizer_file import TokenizerFile
from local_models.vocabulary import Vocabulary, relate

MIN_RATIO: Final = 2
"""A target's file must be at least this many times as large as its draft model's; with a larger
draft model, drafting takes so long that little is gained."""

Consent = Literal["ask", "always", "never"]
"""A draft model that no catalogue has is fetched after a question at a terminal, without a
question, or never."""


def ask_at_terminal(question: str) -> bool:
    """Return True if a person at the terminal agrees. A service has no terminal: False."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    with suppress(EOFError):
        return Confirm.ask(escape(question), console=Console(stderr=True))
    return False


@dataclass(frozen=True, slots=True)
class HubPolicy:
    """A HubPolicy says whether a draft model may come from the hub, and how large it may be."""

    consent: Consent = "ask"
    max_gb: float = 1.0
    ask: Callable[[str], bool] = ask_at_terminal


@dataclass(frozen=True, slots=True)
class DraftModelChoice:
    """A reference to a draft model, or None, and the reason in words."""

    name: str | None
    why: str
    remedy: str = ""
    """This command would give the target a draft model, if it has none; empty if none would."""


def choose_draft(
    store: Store,
    target: str,
    vocabulary: Vocabulary,
    policy: HubPolicy,
    target_bytes: int | None = None,
) -> DraftModelChoice:
    """Choose a draft model for a target, which may still have to be pulled.

    target: its name. target_bytes: the size of its file; None if unknown.
    """
    if name := fitting_draft(store, target, vocabulary, target_bytes):
        return DraftModelChoice(name, "the catalogue has it for this target or for its tokens")
    if policy.consent == "never":
        return DraftModelChoice(None, "none of the catalogue fits")
    search = find_sibling(store, target, vocabulary, policy.max_gb * 1e9, target_bytes)
    if (sibling := search.sibling) is None:
        return DraftModelChoice(
            None, f"none of the catalogue fits, and none on the hub: {search}"
        )
    may = sibling.is_here or policy.consent == "always"
    if may or policy.ask(f"A draft model may make {target} faster. Fetch {sibling}?"):
        return DraftModelChoice(sibling.reference, f"a sibling of this target: {sibling}")
    remedy = f"picospec models pull --as draft {sibling.reference}"
    return DraftModelChoice(None, f"none is here; on the hub is {sibling}", remedy)


def fitting_draft(
    store: Store, target: str, vocabulary: Vocabulary, target_bytes: int | None = None
) -> str | None:
    """Return the name of a draft model for a target; None if the catalogue has none.

    A draft model that is paired with the target has precedence, whatever its vocabulary. The
    next choice is the smallest one whose token ids mean the same; it may have to be pulled.
    target: its name. target_bytes: the size of its file; None if unknown.
    """
    for name in store.catalogue.drafts_of(target):
        return name
    for name in _candidates(store, target):
        small = target_bytes is None or _bytes(store, name) * MIN_RATIO <= target_bytes
        if small and _fits(store, name, vocabulary):
            return name
    return None


def _candidates(store: Store, target: str) -> Iterator[str]:
    """Yield the draft models of all pairs and all Q4_0 variants, smallest first."""
    catalogue = store.catalogue
    drafts = {pair.draft for pair in catalogue.pairs.values()}
    drafts |= {name for name, of in catalogue.variants.items() if of.quantisation == "Q4_0"}
    for name in sorted(drafts, key=lambda name: (_bytes(store, name), name)):
        if target not in (name, catalogue.recipe(name).model):
            yield name


def _fits(store: Store, name: str, vocabulary: Vocabulary) -> bool:
    if known := store.catalogue.recipe(name).file.vocabulary:
        return known == vocabulary.digest
    try:
        own = vocabulary_of(store.find(name, "draft").path)
    except ModelError:
        return False
    return relate(vocabulary, own) != "different"


def _bytes(store: Store, name: str) -> int:
    return store.catalogue.recipe(name).file.bytes


@dataclass(frozen=True, slots=True)
class Sibling:
    """A model of the hub that can draft for a target."""

    reference: str
    file: ModelFile
    is_here: bool

    def __str__(self) -> str:
        size = f"{self.file.bytes / 1e9:.2f} GB"
        licence = f", licence {self.file.licence}" if self.file.licence else ""
        return f"{self.file.repository}/{self.file.file} ({size}{licence}, the same tokens)"


@dataclass(frozen=True, slots=True)
class Search:
    """A Search has what was found, and says why it is none of the candidates before it."""

    sibling: Sibling | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "no family of the catalogue has this target's name"


def find_sibling(
    store: Store,
    target: str,
    vocabulary: Vocabulary,
    max_bytes: float,
    target_bytes: int | None = None,
) -> Search:
    """Look for a sibling of at most `max_bytes`, and half the target's size if that is known.

    target: its name. It fetches no weights, and raises nothing: what fails is a reason.
    """
    reasons: list[str] = []
    if target_bytes is not None:
        max_bytes = min(max_bytes, target_bytes / MIN_RATIO)
    for reference in store.catalogue.siblings_of(target):
        try:
            sibling = _examined(store, reference, vocabulary, max_bytes)
        except Unreachable as error:  # nor does it answer for the others
            return Search(None, (*reasons, f"{reference}: {error}"))
        except (ModelError, OSError) as error:
            reasons.append(f"{reference}: {error}")
        else:
            return Search(sibling, tuple(reasons))
    return Search(None, tuple(reasons))


def _examined(store: Store, reference: str, target: Vocabulary, max_bytes: float) -> Sibling:
    """Return a candidate that can draft for the target. Raises ModelError, OSError."""
    path: Path | None = None
    try:
        path = store.find(reference, "draft").path
        hub = parse_reference(reference)
        repository = hub.repository if hub else ""
        file = ModelFile(path.name, bytes=path.stat().st_size, repository=repository)
    except NotPulled:
        file = store.describe(reference, "draft")
    if file.bytes > max_bytes:
        size, most = file.bytes / 1e9, max_bytes / 1e9
        raise Unsuitable(f"its {size:.2f} GB are more than {most:.2f} GB")
    own = vocabulary_of(path) if path else _vocabulary_on_the_hub(store, file)
    if relate(target, own) == "different":
        raise Unsuitable("it has other tokens than the target")
    return Sibling(reference, file, path is not None)


def vocabulary_of(path: Path) -> Vocabulary:
    """Return the vocabulary of a GGUF file. Raises CannotOpen."""
    model = Model(path, vocabulary_only=True)
    vocabulary = model.vocabulary
    model.close()
    return vocabulary


def _vocabulary_on_the_hub(store: Store, file: ModelFile) -> Vocabulary:
    """Return the vocabulary of a file of the hub. It is tried out in a process of its own."""
    tokenizer = TokenizerFile("gguf", store.hub.metadata(file))
    cache = TokenizerCache(store.root / "tokenizers")
    return cache.keep(tokenizer.digest, tokenizer.pack()).vocabulary
