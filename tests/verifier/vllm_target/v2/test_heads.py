"""vLLM's own speculation beside edges: every text is the one without speculation, and a pass
takes the edge's draft tokens or the head's, whichever earn more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from tests.verifier.vllm_target.conftest import LIMITS, ON_ENGINE, started
from tests.verifier.vllm_target.scripted import Answer, Script, drafted, plain, recovered
from tests.verifier.vllm_target.v2.tiny import (
    HEADS_BY_METHOD,
    Text,
    make,
    make_head,
    own,
    session,
)
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
Texts = dict[tuple[str, int], Text]
LONG = pytest.mark.long  # an engine for each head
K, WIDE = 3, 32
MAX_VERIFY = "PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY"
NAMES = ("T=0", "T=1", "top-k, top-p, min-p", "penalties", "schema")


@pytest.fixture(scope="module")
def head(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with some noise in its weights, so that it is often right."""
    folder = make(tmp_path_factory.mktemp("head"))
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for each in weights.values():
        each += 0.03 * each.std(correction=0) * torch.randn(each.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=["draft_model", pytest.param("ngram", marks=LONG)],
)
async def merged(
    request: pytest.FixtureRequest, directory: Path, head: Path, texts: Texts
) -> AsyncIterator[VllmTarget]:
    speculation: dict[str, object] = {"method": request.param, "num_speculative_tokens": K}
    if request.param == "draft_model":
        speculation["model"] = str(head)
    limits = LIMITS
    if request.param in HEADS_BY_METHOD:
        speculation["model"] = str(make_head(request.param, directory.parent / request.param))
        speculation["draft_sample_method"] = "probabilistic"
        limits = replace(limits, max_verify=WIDE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(MAX_VERIFY, str(limits.max_verify))
        async with started(directory, limits, speculative_config=speculation) as served:
            yield served


async def run(
    target: VllmTarget, texts: Texts, name: str, number: int, script: Script | None
) -> Answer:
    request, key = session(target.facts, name, number), f"{name} {number} {script}"
    if script is None:
        return await plain(target, key, request)
    return await drafted(target, key, request, texts[name, number].tokens, script)


@pytest.mark.parametrize("name", NAMES)
async def test_texts_are_those_without_speculation(
    merged: VllmTarget, texts: Texts, name: str
) -> None:
    scripts = (None, Script(), Script(wrong=1.0), Script(wrong=0.2, late_s=0.2))

    answers = await asyncio.gather(
        *(run(merged, texts, name, i % 3, script) for i, script in enumerate(scripts))
    )

    assert [a.tokens for a in answers] == [texts[name, i % 3].tokens for i in range(4)]
    totals = [answer.finish.totals for answer in answers if answer.finish]
    if name != "schema":  # which forbids most of what a head proposes without it
        assert totals[0].judged > 0, "the head serves a session without an edge's draft tokens"
    assert totals[1].accepted > totals[1].verifier_accepted, (
        "right draft tokens replace the head's"
    )


async def test_either_helps_where_it_is_better(
    request: pytest.FixtureRequest, merged: VllmTarget, texts: Texts
) -> None:
    only_head = await run(merged, texts, "T=0", 0, None)
    wrong = await run(merged, texts, "T=0", 0, Script(wrong=1.0))
    both = await run(merged, texts, "T=0", 0, Script(wrong=0.02))

    passes = [
        answer.finish.totals.passes for answer in (only_head, wrong, both) if answer.finish
    ]
    head = request.node.callspec.params["merged"]
    assert passes[0] < len(only_head.tokens) or head == "ngram"  # this text repeats nothing
    assert passes[1] <= passes[0] + 2, "a chain that is always wrong soon leaves it to the head"
    assert passes[2] < passes[0]


@pytest.mark.parametrize("merged", ["draft_model"], indirect=True)
async def test_a_head_draws_with_the_noise_of_the_judge(
    merged: VllmTarget, texts: Texts
) -> None:
    """Its likeliest token alone would have 0.28 accepted here, and a token of other noise 0.15;
    with the judge's noise 0.79 are."""
    answers = [await run(merged, texts, "T=1", number, None) for number in range(3)]

    totals = [answer.finish.totals for answer in answers if answer.finish]
    assert [a.tokens for a in answers] == [texts["T=1", number].tokens for number in range(3)]
    assert sum(t.passes for t in totals) < 3 * 32 * 0.55


async def test_vllms_own_requests_keep_its_judge(merged: VllmTarget, texts: Texts) -> None:
    beside = asyncio.create_task(run(merged, texts, "T=1", 1, Script(wrong=0.1, late_s=0.05)))
    found = await asyncio.gather(*(own(merged, "T=0", i) for i in range(3)))

    assert found == [texts["T=0", i].tokens for i in range(3)]
    assert (await beside).tokens == texts["T=1", 1].tokens


@LONG
@pytest.mark.parametrize("merged", HEADS_BY_METHOD, indirect=True)
async def test_a_head_that_reads_the_targets_hidden_states(
    merged: VllmTarget, texts: Texts
) -> None:
    """Beside a session that is silent for a step after each rejection. The head's weights are
    random: what it proposes is judged, and hardly ever right."""
    names, scripts = ("T=0", "T=1", "penalties"), (None, Script(window=WIDE), Script(wrong=0.2))
    separate = session(merged.facts, "T=1", 0, judge="separate", fill="never")

    silent = asyncio.create_task(recovered(merged, "silent", separate, Random(3)))
    answers = await asyncio.gather(
        *(run(merged, texts, names[i], i, script) for i, script in enumerate(scripts))
    )

    assert [a.tokens for a in answers] == [texts[names[i], i].tokens for i in range(3)]
    totals = [answer.finish.totals for answer in answers if answer.finish]
    assert totals[0].judged > totals[0].passes, "the head's tokens are judged"
    assert totals[1].accepted > 20, "an edge's are in their place"
    assert totals[1].passes < 32 / (K + 1), "and many more than the head has"
    assert (await silent)[1] > 10
