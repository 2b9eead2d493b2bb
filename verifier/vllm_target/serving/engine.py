"""Sends to vLLM's engine, as its API server does, and reads from it.

vLLM has started the engine, in processes of its own, and will stop it. Drafts go through its
ordered request socket, which also wakes it; outputs come back on its output socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, fields
from operator import eq
from typing import Any, Final

import torch
import vllm
import vllm.envs as envs
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from speculation.answer_cache import Owner
from speculation.errors import RemoteProtocolError
from speculation.messages import CachedPromptTokens
from verifier.target import TargetFailed, Unservable
from verifier.vllm_target import patcher
from verifier.vllm_target.core.slot import OutgoingFrame
from verifier.vllm_target.ipc_messages import FIELD
from verifier.vllm_target.packing import packed
from verifier.vllm_target.patches import Original
from verifier.vllm_target.serving.ranks import Ranks
from verifier.vllm_target.serving.selftest import Precision

SHAPELESS: Final = ("model_config", "observability_config", "profiler_config")
"""No text depends on these parts of vLLM's settings, but for OF_MODEL. One contains the model's
folder, which may differ between hosts."""

OF_MODEL: Final = (
    "quantization", "enforce_eager", "hf_overrides", "disable_sliding_window", "model_impl",
    "logits_processors", "use_fp64_gumbel", "disable_cascade_attn",
)  # fmt: skip
"""Texts depend on these settings of the model, most of which vLLM's own hash leaves out."""


@dataclass(slots=True)
class _Reader:
    """Reads one session. take: gets its frames. failure: what ends it, if anything does."""

    take: Callable[[OutgoingFrame], object]
    failure: Exception | None = None
    _has_begun: bool = False

    def read(self, frames: Sequence[Any], error: str | None, cached_tokens: int) -> None:
        """Take the frames of an output, and before the first of all what the KV cache had."""
        try:
            if not self._has_begun and cached_tokens:
                self.take(OutgoingFrame(packed(CachedPromptTokens(cached_tokens))))
            self._has_begun = True
            for frame in frames:
                self.take(OutgoingFrame(*frame))
            if error is not None:
                raise RemoteProtocolError(error)
        except Exception as failure:  # this session alone is lost
            self.failure = failure


_NOTHING: Final = "", (), None


class VllmEngine:
    """Raises TargetFailed from every method when vLLM fails."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._ranks = Ranks(llm.engine_core)
        self._steps: list[int] = []  # steps of each core at the last heartbeat
        self._readers: dict[str, _Reader] = {}
        patcher.apply("answers", ours=self, outputs=llm.output_processor)

    async def install(self, tokens: int) -> None:
        """Install the judge in the workers, and the methods for sessions in the cores.

        tokens: the number of the model's ids that are tokens; later ids are never drawn.
        """
        try:
            if (known := self.model.get_vocab_size()) < tokens:
                raise TargetFailed(f"the model knows {known} ids, its tokenizer has {tokens}")
            await self._llm.collective_rpc("picospec_install", args=(tokens,))
            if not all(await self._ranks.call_all("attach")):
                raise TargetFailed("this vLLM engine has no queues between its processes")
        except Exception as error:  # vLLM may raise anything
            raise TargetFailed(f"vLLM takes no sessions: {error}") from error

    @property
    def max_sessions(self) -> int:
        """Return the number of requests that its cores run at once."""
        most: int = self._llm.vllm_config.scheduler_config.max_num_seqs
        return most * len(self._ranks)

    @property
    def drawn_by_vllm(self) -> bool:
        """True if vLLM's own sampler draws the tokens of sessions (Model Runner V2)."""
        return bool(self._llm.vllm_config.use_v2_model_runner)

    @property
    def model(self) -> Any:
        """Return vLLM's description of the model."""
        return self._llm.vllm_config.model_config

    @property
    def download_dir(self) -> str | None:
        """Return the folder where vLLM keeps downloads; None for the hub library's default."""
        folder: str | None = self._llm.vllm_config.load_config.download_dir
        return folder

    @property
    def is_recurrent(self) -> bool:
        """True if layers of the model keep a state that each token changes for good."""
        return bool(self.model.has_inner_state)

    @property
    def reads_kv(self) -> bool:
        """True if a connector brings KV that another request, or another host, computed."""
        return self._llm.vllm_config.kv_transfer_config is not None

    @property
    def shapes(self) -> Sequence[object]:
        """Return the values beside the weights that shape a text, from vLLM's settings."""
        configured, model = self._llm.vllm_config, self.model
        device = current_platform.get_device_name()
        if current_platform.is_cpu():
            device = torch.backends.cpu.get_cpu_capability()
        runner = "v2" if self.drawn_by_vllm else "v1"  # they cut and round in other ways
        version = f"vllm {vllm.__version__} {runner} torch {torch.__version__} {device}"
        parts = {each.name: getattr(configured, each.name) for each in fields(configured)}
        digests = {
            name: part.compute_hash()
            for name, part in parts.items()
            if name not in SHAPELESS and hasattr(part, "compute_hash")
        }
        chosen = {name: _named(getattr(model, name, None)) for name in OF_MODEL}
        return version, digests, str(model.dtype), chosen, envs.VLLM_BATCH_INVARIANT

    @property
    def precision(self) -> Precision:
        """Return what the self-test may expect of the model's type, and of vLLM's settings."""
        most, alternatives = self.model.max_logprobs, Precision().alternatives
        ulp = 16 * torch.finfo(self.model.dtype).eps  # of a logit from 16 to 32
        return Precision(2 * ulp, alternatives if most < 0 else min(most, alternatives))

    @property
    def alive(self) -> bool:
        """False once one of the engine's processes has died, or a step has failed."""
        return not self._llm.errored

    async def generate(
        self,
        session: str,
        text: tuple[int, ...],
        wanted: Mapping[str, Any],
        take: Callable[[OutgoingFrame], object],
        cache_salt: str | None = None,
        adapter: LoRARequest | None = None,
    ) -> None:
        """Run one session; `take` gets its frames, each once and in order, to the last.

        text: the tokens that the session begins with; they are vLLM's prompt. wanted: see
        parameters.engine_request. cache_salt: KV is reused only between requests with the same
        salt.

        The request is on its way to the core before this first waits, so messages pushed later
        arrive after it. Cancelling it aborts it. Raises Unservable for an option that
        vLLM lacks, RemoteProtocolError for a message that no correct edge sends.
        """
        # rendered here: vLLM would render text in a thread
        rendered = {"type": "token", "prompt_token_ids": list(text), "cache_salt": cache_salt}
        try:
            with self._ranks.placed(session) as rank, ExitStack() as after:
                reader = self._readers[session] = _Reader(take)
                after.callback(self._readers.pop, session)
                outputs = self._llm.generate(
                    rendered,
                    _parameters(wanted),
                    request_id=session,
                    lora_request=adapter,
                    data_parallel_rank=rank,
                )
                async with aclosing(outputs):
                    async for _ in outputs:
                        if reader.failure is not None:
                            raise reader.failure
        except VLLMValidationError as error:
            raise Unservable(error.parameter or "request", str(error)) from error
        except ValueError as error:
            raise Unservable("request", str(error)) from error
        except (Unservable, TargetFailed, RemoteProtocolError):
            raise
        except Exception as error:
            raise TargetFailed(f"vLLM failed: {error}") from error

    def _collect(
        self, original: Original, outputs: Sequence[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Take the sessions' frames from the core's outputs here, because vLLM merges outputs
        for a slow reader and would keep only the last one's frames."""
        states = self._llm.output_processor.request_states
        left, ours = list[Any](), list[tuple[Any, ...]]()
        for output in outputs:
            session, *of_session = (output.kv_transfer_params or {}).get(FIELD, _NOTHING)
            reader, state = self._readers.get(session), states.get(output.request_id)
            if reader is not None:
                ours.append((reader, state, *of_session))
            if reader is None or not self._counts(output, state, *args):
                left.append(output)
        processed = original(left, *args, **kwargs)  # and the cached tokens are known
        for reader, state, frames, error in ours:
            reader.read(frames, error, (state and state.num_cached_tokens) or 0)
            if reader.failure is not None and state is not None:
                state.queue.put(RequestOutput("", None, None, None, [], finished=False))
        return processed

    def _counts(
        self, output: Any, state: Any, timestamp: float = 0.0, stats: Any = None
    ) -> bool:
        """Count the tokens of a session's output as vLLM does, and return True, if vLLM need
        not process the output: its reader needs the frames alone."""
        if output.finished or state is None or state.is_prefilling:
            return False
        processor = self._llm.output_processor
        processor._update_stats_from_output(state, output, timestamp, stats)
        return True

    async def push(self, session: str, frame: bytes) -> None:
        """Send a packed message of a running session, see CoreChannel.push."""
        await self._ranks.push(session, frame)

    async def forget(self, owner: Owner) -> None:
        """Forget an owner's answers in all cores."""
        await self._ranks.call_all("forget", owner.tenant, owner.user)

    async def learned_statistics(self) -> list[dict[str, object]]:
        """Return what the machine of each core has learned."""
        return await self._ranks.call_all("learned_statistics")

    async def figures(self) -> dict[str, int]:
        """Return the schedulers' counts, summed over all cores."""
        figures_by_rank = await self._ranks.call_all("figures")
        return {
            name: sum(each[name] for each in figures_by_rank) for name in figures_by_rank[0]
        }

    async def heartbeat(self) -> None:
        """Return once the running steps have ended and the workers have answered. A step of
        each core since the last heartbeat proves that; otherwise the workers are asked."""
        steps = [figures["steps"] for figures in await self._ranks.call_all("figures")]
        if not self._steps or any(map(eq, steps, self._steps)):
            await self._llm.collective_rpc("picospec_answer")
        self._steps = steps


def _parameters(wanted: Mapping[str, Any]) -> SamplingParams:
    parameters = SamplingParams(**wanted, output_kind=RequestOutputKind.DELTA)
    if structured := wanted["structured_outputs"]:
        parameters.structured_outputs = StructuredOutputsParams(**structured)
    return parameters


def _named(setting: object) -> object:
    """Return a setting as it is, or the names of the classes and functions in it."""
    if isinstance(setting, list | tuple):
        return [_named(each) for each in setting]
    if callable(setting):
        return f"{setting.__module__}.{getattr(setting, '__qualname__', type(setting))}"
    return setting
