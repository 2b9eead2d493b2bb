"""Hooks draft tokens, our judge and silent requests into Model Runner V2, and mends it.

vLLM's sampler applies every setting of a session, as for vLLM's own requests, and draws its
rows. These hooks put the draft tokens into the rows' input, compare them with the drawn tokens,
and judge the sessions whose rule needs more than one token of each row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from vllm.v1.worker.gpu.input_batch import InputBatch

from speculation.judge import Judgement
from speculation.model_facts import TokenId
from verifier.vllm_target import patcher
from verifier.vllm_target.ipc_messages import FIELD
from verifier.vllm_target.patches import Original, Place
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.by_noise import judge_by_noise
from verifier.vllm_target.worker.by_p import judge_by_p
from verifier.vllm_target.worker.row_shares import Judged, Others
from verifier.vllm_target.worker.upload import upload

WARM_ROWS: Final = (2, 16, 17, 512)
"""Kernels are compiled anew for numbers of rows that 16 divides, and others are chosen by size;
512 rows are the most in a CUDA graph."""


@dataclass(slots=True)
class Step:
    """A Step has one step's sessions, and the outcomes of those that are judged by p."""

    requests: dict[str, VerifyRequest] = field(default_factory=dict)
    drafts: dict[str, list[TokenId]] = field(default_factory=dict)
    """vLLM takes these for draft tokens, of each of its requests that has any."""

    judged: dict[str, Judgement] = field(default_factory=dict)
    ours: Tensor | None = None
    """Slots of sessions are True: bool[slots]; None if the vocabulary has no padding."""

    slots: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """The rows that are being judged have these slots, request after request."""

    silent: tuple[Tensor, Tensor] | None = None
    """These are the indices of silent requests, whose sessions begin no pass, and every
    request's number of rejected rows."""


class RunnerHooks:
    """Wraps the runner's step and its rejection sampler; vLLM's own requests pass through.

    tokens: the number of the model's ids that are tokens. Later ids are padding, which no
    session receives.
    """

    def __init__(self, runner: Any, tokens: int) -> None:
        self._runner = runner
        self._tokens = tokens
        self._step = Step()
        choice = RunnerChoice.of(runner.vllm_config) or RunnerChoice("v2", 0)
        self._head = choice.head
        self.width = choice.width
        self._is_mixed = bool(choice.head) and not choice.seed_exact
        self._drawing: Tensor | None = getattr(runner.speculator, "picospec_ours", None)
        if self._drawing is not None:
            self._drawing.fill_(choice.seed_exact)
        patcher.apply("v2", ours=self, runner=runner)
        if runner.sampler is not None:  # on the last pipeline rank
            patcher.apply("v2 sampler", ours=self, runner=runner)
            proposing: Place = "v2 with a head" if choice.head else "v2 without a head"
            patcher.apply(proposing, ours=self, runner=runner)

    def warm_up(self) -> None:
        """Judge steps of no request, because vLLM has warmed up without these hooks: else the
        first users would wait for the kernels that Triton compiles for such shapes."""
        runner = self._runner
        if runner.sampler is None:
            return
        settings, device = runner.sampler.sampling_states, runner.device
        buffers = settings.temperature.gpu, settings.seeds.gpu
        for rows in WARM_ROWS:
            logits = torch.zeros(rows, runner.vocab_size, device=device)
            places = torch.zeros(rows, dtype=torch.int64, device=device)
            columns = torch.arange(rows, dtype=torch.int32, device=device)
            end = torch.tensor([rows], dtype=torch.int32, device=device)
            judge_by_noise(logits, places, end, places, places, columns, *buffers, rows)
        batch = InputBatch.make_dummy(1, 1, runner.input_buffers)
        runner.structured_outputs_worker.warm_up(logits, batch)

    def _begin(self, original: Original, plan: Any, *args: Any, **kwargs: Any) -> Any:
        """Put the draft tokens where V2 reads them; the plan gives it only their number."""
        requests = getattr(plan, "picospec_requests", None) or {}
        self._step = Step(requests, plan.scheduled_spec_decode_tokens)
        states = self._runner.req_states
        placed = [
            (states.req_id_to_index[name], column, token)
            for name in requests
            for column, token in enumerate(self._step.drafts.get(name, ()))
            if token >= 0  # the head's tokens (-1) are already there
        ]
        if placed:
            slots, columns, tokens = upload(np.array(placed).T.copy(), states.device)
            states.draft_tokens[slots, columns] = tokens
        is_padded = bool(requests) and self._tokens < self._runner.vocab_size
        drawing = self._drawing if self._is_mixed else None
        if is_padded or drawing is not None:
            marks = np.zeros(states.max_num_reqs, np.bool_)
            marks[[states.req_id_to_index[name] for name in requests]] = True
            ours = upload(marks, states.device)
            self._step.ours = ours if is_padded else None
            if drawing is not None:
                drawing.copy_(ours)
        return original(plan, *args, **kwargs)

    def _spread_adapters(
        self, original: Original, names: list[str], *args: Any
    ) -> tuple[tuple[int, ...], Any, Any]:
        """Name the adapter of each row of logits. vLLM names one a request, so with draft
        tokens it takes the lm_head of another request's adapter, or fails on a CPU."""
        adapters, *others = original(names, *args)
        counts = [len(self._step.drafts.get(name, ())) + 1 for name in names]
        return tuple(np.repeat(adapters, counts)), *others

    def _cut_padding(
        self, original: Original, logits: Tensor, rows: Tensor, slots: Any, slots_np: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        self._step.slots = slots_np
        if (ours := self._step.ours) is not None:
            logits[:, self._tokens :].masked_fill_(ours[rows, None], -torch.inf)
        return original(logits, rows, slots, slots_np, *args, **kwargs)

    def _add_request(self, original: Original, slot: int, wanted: Any) -> Any:
        """Draw a session of seed 2**64 - 1 with that seed. As a signed number it is -1, which
        SamplingParams makes None of whenever it is copied or crosses between processes."""
        if wanted.seed is None and isinstance((wanted.extra_args or {}).get(FIELD), bytes):
            wanted.seed = -1
        return original(slot, wanted)

    def _gather(
        self, original: Original, ids: Any, positions: Any, rows: Any, slots: Any, columns: Any,
        prefill_lengths: Tensor, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Read draft tokens even in a step that begins inside the prompt, as after a silent
        step. vLLM marks them as absent there, because it never drafts in a prompt."""
        none = torch.zeros_like(prefill_lengths)
        return original(ids, positions, rows, slots, columns, none, *args, **kwargs)

    def _judge(
        self, original: Original, logits: Tensor, draft_logits: object, drafted: Tensor,
        bounds: Tensor, at: Tensor, slots: Tensor, rows: Tensor, columns: Tensor,
        temperatures: Tensor, seeds: Tensor, most: int, *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        given = Judged(drafted, bounds, at, slots, rows, columns, temperatures, seeds, most)
        others = self._others()

        def as_original(logits: Tensor, given: Judged) -> tuple[Tensor, Tensor]:
            """Let vLLM judge. Its head has no more logits than it proposes tokens."""
            narrow = given._replace(most=self._head)
            sampled, counts = original(logits, draft_logits, *narrow, *args, **kwargs)
            return pad(sampled, (0, given.most - self._head)), counts

        if others is not None and not self._step.requests:
            return as_original(logits, given)
        sampled, counts = judge_by_noise(
            logits, given.drafted, given.bounds[1:], given.at, given.rows, given.columns,
            given.temperatures, given.seeds, given.most,
        )  # fmt: skip
        self._judge_by_p(logits, sampled, counts)
        if others is not None and others.places.size:
            places = upload(others.places, logits.device)
            their_rows = upload(others.rows, logits.device)
            theirs = given.of(places, their_rows, upload(others.bounds, logits.device))
            sampled[places], counts[places] = as_original(logits[their_rows], theirs)
        return sampled, counts

    def _others(self) -> Others | None:
        """Return the requests without a session if vLLM's own judge judges them, else None."""
        if not self._is_mixed:
            return None
        name_of, step = self._runner.req_states.index_to_req_id, self._step
        return Others.of(
            [
                (len(step.drafts.get(name_of[slot], ())) + 1, name_of[slot] in step.requests)
                for slot in step.slots.tolist()
            ]
        )

    def _judge_by_p(self, logits: Tensor, sampled: Tensor, counts: Tensor) -> None:
        """Judge again, in place, the requests whose rule needs p. A row without a draft token
        stays as drawn, because that token already has the target's distribution."""
        step, name_of = self._step, self._runner.req_states.index_to_req_id
        names = [name_of[slot] for slot in step.slots.tolist()]
        starts = accumulate((len(step.drafts.get(name, ())) + 1 for name in names), initial=0)
        judgements = [
            (i, start, request)
            for i, (name, start) in enumerate(zip(names, starts, strict=False))
            if (request := step.requests.get(name))
            if request.rule and not request.rule.noise and request.draft
        ]
        if not judgements:
            return
        places, firsts, requests = zip(*judgements, strict=True)
        judged = judge_by_p(requests, logits[:, : self._tokens], firsts)
        step.judged |= {names[i]: each for i, each in zip(places, judged, strict=True)}
        tokens = np.zeros((len(judgements), sampled.shape[1]), np.int64)
        lengths = np.zeros(len(judgements), np.int32)
        for i, judgement in enumerate(judged):
            lengths[i] = len(judgement.tokens)
            tokens[i, : lengths[i]] = judgement.tokens
        where = upload(np.array(places), sampled.device)
        sampled[where] = upload(tokens, sampled.device)
        counts[where] = upload(lengths, sampled.device)

    def _sample(self, original: Original, hidden: Any, batch: Any, *args: Any) -> Any:
        """Make silent requests generate nothing: V2's own arithmetic then leaves the last token
        and the count of computed tokens unchanged."""
        output, counts, rejected = original(hidden, batch, *args)
        requests = [self._step.requests.get(name) for name in batch.req_ids]
        silent = [i for i, each in enumerate(requests) if each and each.rule is None]
        if silent:
            where = upload(np.array(silent), counts.device)
            counts.index_fill_(0, where, 0)
            rejected.index_fill_(0, where, 1)
            self._step.silent = where, rejected
        return output, counts, rejected

    def _propose(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Leave vLLM's own speculation one row of each silent request: heads that read the
        target's hidden states write behind the last row that is not rejected, and the place
        before the first row is not theirs."""
        if self._step.silent:
            where, rejected = self._step.silent
            rejected.index_fill_(0, where, 0)
        return original(*args, **kwargs)

    def _propose_nothing(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **{"dummy_run": True, **kwargs})

    def _run_dummy(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run a dummy step whose requests have one row, as those that the other ranks decode.
        vLLM means full width, and ranks of different widths have no FULL graph in common."""
        return original(*args, **{**kwargs, "uniform_decode": False})

    def _return_judgements(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        output, judged = original(*args, **kwargs), self._step.judged
        if judged and output is not None:
            output.model_runner_output.picospec_judged = judged
        return output
