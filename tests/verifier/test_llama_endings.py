"""Where an answer of the embedded target ends, and settings that it rejects."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from picospec.gateway.errors import InvalidRequest
from picospec.speculation.protocol.messages import Open
from picospec.verifier.plain_engine import opening
from picospec.verifier.target_host import Host
from tests.verifier.llama_edges import TOKENS
from tests.verifier.served_llama import PROMPTS, TEMPERATURES, job_of, plain, tokens_of

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]


def at_least(request: Open, tokens: object) -> Open:
    extras = {"min_tokens": msgspec.Raw(msgspec.json.encode(tokens))}
    return replace(request, sampling=msgspec.structs.replace(request.sampling, extras=extras))


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_no_answer_ends_before_min_tokens(host: Host, temperature: float) -> None:
    """The stop tokens are all tokens of the answer that the target gives without min_tokens."""
    job = job_of(host, PROMPTS[0], temperature)
    text = await plain(host, job)
    request = replace(opening(job, host.ready().facts), stop_tokens=tuple(set(text)))

    committed = [await tokens_of(host, "free", request)]
    committed.append(await tokens_of(host, "bound", at_least(request, 10)))

    assert committed[0] == text[:1]
    assert not set(committed[1][:10]) & set(text)
    assert len(committed[1]) >= 10


async def test_an_answer_ends_at_the_clients_stop_token_and_ignores_the_models(
    host: Host,
) -> None:
    """The model's own stop token is made likely, so that it must be ignored."""
    end = min(host.ready().facts.stop_tokens)
    likely: dict[str, object] = {"logit_bias": {end: 100.0}}
    free = await plain(host, job_of(host, PROMPTS[0], 0.0))
    last = next(token for i, token in enumerate(free) if i > 2 and token not in free[:i])

    ended = await plain(host, job_of(host, PROMPTS[0], 0.0, **likely))
    ignored = await plain(host, job_of(host, PROMPTS[0], 0.0, **likely, ignore_eos=True))
    stopped = await plain(host, job_of(host, PROMPTS[0], 0.0, stop_token_ids=[last]))

    assert ended == [end]
    assert ignored == [end] * TOKENS
    assert stopped == free[: free.index(last) + 1]


async def test_a_wrong_setting_is_a_400_that_names_it(host: Host) -> None:
    with pytest.raises(InvalidRequest, match="presence_penalty") as raised:
        await plain(host, job_of(host, PROMPTS[0], 0.0, presence_penalty=3))

    assert raised.value.param == "presence_penalty"
