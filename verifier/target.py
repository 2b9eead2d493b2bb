"""This is the port between the verifier's service and the large model.

A target owns the verifying machines of its sessions, because it alone knows when a pass starts:
the embedded llama.cpp target runs passes itself, vLLM adds draft tokens to its own continuous
batch. The service passes messages up and down, and knows nothing of passes. A message travels
with its frame, so that bytes from the edge or from vLLM's core are forwarded unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from gateway.channel import Channel, as_generator
from gateway.errors import ApiError, InvalidRequest, NotFound, Overloaded, Unavailable
from gateway.ports import GatewayTokenizer
from gateway.turns import Turns
from local_models.compiler import MAX_WAITING, WAITING, GrammarCompiler
from local_models.constraints import NAME
from local_models.errors import CannotCheck, InvalidGrammar
from local_models.tokenizer_file import TokenizerFile
from speculation.answer_cache import Owner
from speculation.errors import InvalidSetting
from speculation.judges import JUDGES
from speculation.logit_settings import LOGIT_SETTINGS
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Finish,
    Open,
    Pushed,
    Reject,
    TokenLogprob,
)
from speculation.model_facts import Limits, ModelFacts
from speculation.request_names import PROMPT_LOGPROBS, SALT, STOPPING
from speculation.wire import Framed
from verifier.identity import identity_of
from verifier.owners import SEPARATE, Owners

FEATURES: Final = (*LOGIT_SETTINGS, *STOPPING, NAME, SALT)
"""Targets serve these OpenAI parameters beyond Sampling."""

T = TypeVar("T")
Reply = CachedPromptTokens | Commit | Reject | Finish
"""A target sends these messages to a session's edge."""

Deliver = Callable[[Framed[Reply]], object]
"""Takes a reply at once, and does not wait for whoever reads it."""


class TargetError(ApiError):
    """A target raises these errors, and clients receive them.

    * TargetError
      - TargetFull        no slot is free: try again later
      - UnknownSession    the session does not exist, or it has finished
      - TargetFailed      the engine failed; the session is lost
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
    """This target cannot serve a field of the request. field: its name in the API."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}", param=field)
        self.reason = reason


def asked_grammar(request: Open) -> bytes | None:
    """Return the constraint on the text as JSON; None without one. Raises Unservable."""
    if (grammar := request.sampling.extras.get(NAME)) is None:
        return None
    if not JUDGES[request.judge].takes_any_draft:  # a grammar drops draft tokens by their value
        raise Unservable(NAME, f"not in judge `{request.judge}`")
    return bytes(grammar)


@contextmanager
def unservable() -> Iterator[None]:
    """Translate the errors of reading an Open's settings into TargetErrors."""
    try:
        yield
    except InvalidSetting as error:
        raise Unservable(error.name, error.reason) from error
    except InvalidGrammar as error:
        raise Unservable(error.field(NAME), error.reason) from error
    except CannotCheck as error:
        raise TargetFull(str(error)) from error


class Target(ABC):
    """Runs the large model. An implementation calls `describe` before `start` returns. owners:
    tells whose prefixes and answers a request may use."""

    def __init__(self, limits: Limits, owners: Owners = SEPARATE) -> None:
        self._limits = limits
        self.owners = owners
        self._facts: ModelFacts | None = None
        self._tokenizer: GatewayTokenizer | None = None
        self._grammars: GrammarCompiler | None = None
        self._turns = Turns(1, MAX_WAITING, WAITING)
        self.packed_tokenizer = b""
        """Edges download the target's tokenizer in this form."""

    @property
    def facts(self) -> ModelFacts:
        return started(self._facts)

    @property
    def tokenizer(self) -> GatewayTokenizer:
        """Return the target's tokenizer, for the plain engine."""
        return started(self._tokenizer)

    @property
    def grammars(self) -> GrammarCompiler:
        """Return the compiler of grammars over the target's tokens."""
        return started(self._grammars)

    @property
    @abstractmethod
    def alive(self) -> bool:
        """False once the engine is lost for good: only another process can serve then."""

    @abstractmethod
    async def start(self) -> None:
        """Load the model, which may take minutes."""

    @abstractmethod
    async def heartbeat(self) -> None:
        """Return once the running pass, if any, has ended and each process of the engine has
        answered. It may raise anything."""

    async def stop(self) -> None:
        """Free everything, child processes included, and end the running sessions. This may
        hang if the engine hangs."""
        if self._grammars is not None:
            await self._grammars.close()

    async def check(self, request: Open, tenant: str | None = None) -> None:
        """Make the slow checks before `serve`: whether the grammar can be compiled.

        tenant: the name of the requester; None if unknown. Raises Unservable, TargetFull if no
        grammar can be compiled now, or Overloaded if too many requests of the tenant wait.
        """
        if (grammar := asked_grammar(request)) is not None:
            with unservable():
                await self.grammars.check(grammar, tenant)

    @abstractmethod
    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        """Run one session to its Finish. Cancelling it frees its KV within a pass. The prefix
        that the KV cache keeps is reused only for sessions of this tenant, or for all if
        tenants share prefixes.

        Raises TargetFull or Unservable before it first waits for anything, TargetFailed later,
        and RemoteProtocolError for a message that was decoded after `push` had returned. The
        request was checked against `facts`.
        """

    def replies(
        self, session: str, request: Open, tenant: str | None = None
    ) -> AsyncGenerator[Framed[Reply]]:
        """Run one session as `serve` does, and yield its replies; closing the generator cancels
        it. A reader who sends no draft tokens may be slow: each reply but two has a token."""
        channel = Channel[Framed[Reply]](request.max_tokens + 2)
        work = partial(self.serve, session, request, channel.put, tenant)
        return as_generator(work, channel)

    async def score(
        self, session: str, request: Open, most: int, tenant: str | None = None
    ) -> Sequence[TokenLogprob]:
        """Return the log-probability of each token of the prompt but the first, and those of
        the `most` likeliest in its place, as `serve` reports them. The whole prompt is read, in
        pieces between which other sessions go on. Raises TargetFull or TargetFailed, and
        Unservable unless PROMPT_LOGPROBS is among the features."""
        raise Unservable(PROMPT_LOGPROBS, "not by this target")

    @abstractmethod
    async def push(self, session: str, message: Framed[Pushed]) -> None:
        """Hand a message to a running session, without waiting for its effect.

        Raises UnknownSession, or RemoteProtocolError for a message that no correct edge sends.
        """

    async def learned_statistics(self) -> Sequence[dict[str, object]]:
        """Return what each machine of the target has learned; see
        VerifyMachine.learned_statistics."""
        return ()

    @abstractmethod
    async def forget(self, owner: Owner) -> None:
        """Forget the answers that are kept for an owner; see AnswerCaches.forget."""

    def describe(
        self,
        name: str,
        file: TokenizerFile,
        context_tokens: int,
        shapes: Sequence[object],
        features: Sequence[str] = FEATURES,
    ) -> None:
        """Set the facts, the tokenizer and the grammars. shapes: what shapes a text of the
        weights, the engine and its settings."""
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
            identity=identity_of(shapes, file.digest, context_tokens, self._limits),
        )


def started(value: T | None) -> T:
    """Return a value that a target has once it has started. Raises TargetFailed before."""
    if value is None:
        raise TargetFailed("the target does not run")
    return value
