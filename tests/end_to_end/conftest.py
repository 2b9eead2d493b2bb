"""One set of real services for all tests that lose none of them: SmolLM2 at both ends.

Tests that stop or kill a service start their own, see fleet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from bench.identity import EDGES
from bench.run.services import EdgePlan, Services, ServicesPlan
from tests.local_models.chats import TEMPLATES

PLANS: Final = {
    "eager": EDGES["eager"],
    "bad": EDGES["bad"],
    "far": EDGES["far"],
    "past": EdgePlan(draft_model="none", answer_cache_tokens=1000),
    "separate": EdgePlan(judge="separate", fill="never"),
}
"""`eager`, `bad` and `separate` start no pass without a draft token, however busy this machine
is; the drafts of `bad` are useless; `past` has no draft model, and keeps what it answered."""


def template(folder: Path) -> Path:
    """Return a file of Qwen2.5's template, which here opens reasoning when it is asked to."""
    text = (TEMPLATES / "qwen2.5.jinja").read_text("utf-8").rstrip()
    thinks = "    {%- if enable_thinking %}{{- '<think>\\n' }}{%- endif %}\n{%- endif %}"
    file = folder / "qwen-that-thinks.jinja"
    file.write_text(text.removesuffix("{%- endif %}") + thinks, "utf-8")
    return file


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    file = template(tmp_path_factory.mktemp("template"))
    room = ("--llama.slots", "6", "--llama.context_tokens", "4096")
    plan = ServicesPlan(
        "smollm2",
        "smollm2",
        PLANS,
        verifier_arguments=("--chat-template", str(file), *room),
        environment={"PICOSPEC_EDGE__CONTEXT_TOKENS": "1024"},
        edge_module="tests.end_to_end.patient",
    )
    async with Services(plan) as run:
        yield run
