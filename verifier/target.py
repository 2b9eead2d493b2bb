"""The port between the verifier's service and the large model.

A target owns the sessions' verifying machines, because it alone knows when a pass starts: the
embedded llama.cpp target runs passes itself, vLLM puts draft tokens into its own continuous
batch. The service hands messages up and down, and knows nothing of passes. A message travels
with its frame, so that bytes which came from the edge or from vLLM's core are passed on as
they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from picospec.gateway.errors import ApiError, InvalidRequest, NotFound, Overloaded, Unavailable
from picospec.gateway.tenants.turns import Turns
from picospec.gateway.tokenizer import Tokenizer
from picospec.models.errors import CannotCheck, InvalidGrammar
from picospec.models.grammars.compiler import MAX_WAITING, WAITING, GrammarCompiler
from picospec.models.grammars.constraint import NAME
from picospec.models.tokenizing.tokenizer_file import TokenizerFile
from picospec.speculation.judges.judges import JUDGES
from picospec.speculation.protocol.errors import InvalidSetting
from picospec.speculation.protocol.messages import (
    SPOKEN,
    Commit,
    Finish,
    Limits,
    ModelFacts,
    Open,
    Pushed,
    Reject,
    Reused,
)
from picospec.speculation.protocol.opening import SALT, STOPPING
from picospec.speculation.protocol.wire import Framed
from picospec.speculation.sampling.logit_settings import LOGIT_SETTINGS
from picospec.verifier.identity import identity_of

FEATURES: Final = (*LOGIT_SETTINGS, *STOPPING, NAME, SALT)
"""Targets serve these OpenAI parameters beyond Sampling."""

T = TypeVar("T")
Reply = Reused | Commit | Reject | Finish
"""A target sends these to a session's edge."""


class TargetError(ApiError):
    """Base of the errors a target raises, as clients get them.

    * TargetError
      - TargetFull        no slot is free: try again later
      - UnknownSession    no such session, or it has finished
      - TargetFailed      the engine broke; the session is lost
      - Unservable        this target cannot serve what Open asks for
    """


class TargetFull(TargetError, Overloaded):
    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; try again later")


class UnknownSession(TargetError, NotFound):
    code = "unknown_session"


class TargetFailed(TargetError, Unavailable):
    code = "target_failed"


class Unservable(TargetError, InvalidRequest):
    """field: the name by which clients know it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}", param=field)
        self.reason = reason


def asked_grammar(request: Open) -> bytes | None:
    """Return the constraint of a request's text, as JSON, if it has one. Raises Unservable."""
    if (asked := request.sampling.extras.get(NAME)) is None:
        return None
    if not JUDGES[request.judge].takes_any_draft:  # a grammar drops some by their value
        raise Unservable(NAME, f"not in judge `{request.judge}`")
    return bytes(asked)


@contextmanager
def unservable() -> Iterator[None]:
    """Translate what reading the settings of an Open raises."""
    try:
        yield
    except InvalidSetting as error:
        raise Unservable(error.name, error.reason) from error
    except InvalidGrammar as error:
        raise Unservable(error.field(NAME), error.reason) from error
    except CannotCheck as error:
        raise TargetFull(str(error)) from error


class Target(ABC):
    """The large model. `describe` is called before `start` returns."""

    def __init__(self, limits: Limits, *, share_prefixes: bool = False) -> None:
        self._limits = limits
        self._share_prefixes = share_prefixes
        self._facts: ModelFacts | None = None
        self._tokenizer: Tokenizer | None = None
        self._grammars: GrammarCompiler | None = None
        self._turns = Turns(1, MAX_WAITING, WAITING)
        self.packed_tokenizer = b""
        """The target's own tokenizer, as edges get it."""

    @property
    def facts(self) -> ModelFacts:
        return started(self._facts)

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's own, for the plain engine."""
        return started(self._tokenizer)

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars over the target's tokens."""
        return started(self._grammars)

    @property
    @abstractmethod
    def alive(self) -> bool:
        """False once the engine is lost for good: only another process can serve then."""

    @abstractmethod
    async def start(self) -> None:
        """Load the model; may take minutes."""

    @abstractmethod
    async def heartbeat(self) -> None:
        """Return once the pass that is running now, if any, has ended, and each process of the
        engine has answered. It may raise anything."""

    async def stop(self) -> None:
        """Free everything, child processes included. Sessions still running end. It may hang
        when the engine hangs."""
        if self._grammars is not None:
            await self._grammars.close()

    async def check(self, request: Open, tenant: str | None = None) -> None:
        """Find out what takes time: whether a grammar can be compiled. Called before `serve`.

        tenant: the name of whoever asks; None: nobody is known. Raises Unservable, TargetFull
        where none can be compiled now, or Overloaded where too many of this tenant wait.
        """
        if (asked := asked_grammar(request)) is not None:
            with unservable():
                await self.grammars.check(asked, tenant)

    @abstractmethod
    def serve(
        self, session: str, request: Open, tenant: str | None = None
    ) -> AsyncGenerator[Framed[Reply]]:
        """Run one session to its Finish. Closing the generator frees its KV within a pass.
        What the KV cache keeps of it is reused for this tenant's sessions alone, or for all
        where tenants share prefixes.

        Raises TargetFull or Unservable before it first waits for anything, TargetFailed later,
        and RemoteProtocolError for a message that it looked at only after `push` had returned.
        The request was checked against `facts`.
        """

    @abstractmethod
    async def push(self, session: str, message: Framed[Pushed]) -> None:
        """Hand a message to a running session; return at once.

        Raises UnknownSession, or RemoteProtocolError for what no correct edge sends.
        """

    def owner_of_prefixes(self, tenant: str | None, request: Open) -> str | None:
        """Return to whom what the KV cache keeps of a tenant's prompt belongs: to the tenant,
        or to one of those that the tenant, an edge, tells apart."""
        if self._share_prefixes:
            return None
        salt = request.sampling.extras.get(SALT)
        return tenant if salt is None else identity_of(tenant, bytes(salt))

    def describe(
        self,
        name: str,
        file: TokenizerFile,
        context_tokens: int,
        shapes: Sequence[object],
        features: Sequence[str] = FEATURES,
    ) -> None:
        """Set all of these. shapes: the weights, the engine and its settings, as far as they
        shape a text."""
        tokenizer = file.open()
        self._tokenizer, self.packed_tokenizer = tokenizer, file.pack()
        self._grammars = GrammarCompiler(tokenizer, self._turns.take)
        vocabulary = tokenizer.vocabulary
        self._facts = ModelFacts(
            model=name,
            vocabulary_size=len(vocabulary.pieces),
            vocabulary=file.digest,
            context_tokens=context_tokens,
            stop_tokens=sorted(vocabulary.stop_tokens),
            limits=self._limits,
            judges=list(JUDGES),
            features=list(features),
            padding=vocabulary.padding,
            defaults=file.defaults,
            protocol=SPOKEN[0],
            newest_protocol=SPOKEN[-1],
            identity=identity_of(shapes, file.digest, context_tokens, self._limits),
        )


def started(value: T | None) -> T:
    """Return what a target has once it has started. Raises TargetFailed before."""
    if value is None:
        raise TargetFailed("the target does not run")
    return value
