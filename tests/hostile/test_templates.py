"""A chat template from a verifier loses its own chat, and nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from local_models.confined import environment
from local_models.renderer import Renderer
from local_models.tokenizer import Tokenizer
from local_models.vocabulary import Vocabulary
from tests.gateway.scripted import ScriptedEngine, client_of, make_app
from tests.guards import GUARD_S

BOOM = (
    "{{% if messages[0].content == 'boom' %}}{}{{% else %}}"
    "{{{{ messages[0].content }}}}{{% endif %}}"
)

TEMPLATES = {
    "a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{% set n = messages|length %}{{ (6 + n) ** (7 ** (8 + n)) }}",
    "a multiplied text": "{{ messages[0].content * 2000000000 }}",
    "a multiplied list": "{{ (range(99999)|list * 99999)|length }}",
    "a padded text": "{{ messages[0].content|center(2000000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a text without end": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "an error": "{{ raise_exception('no') }}",
}

AT_THE_START = {
    "a constant": "{{ 9 ** (9 ** 9) }}",
    "a constant that is not reached": "{% if false %}{{ 9 ** (9 ** 9) }}{% endif %}",
    "nesting": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "no template": "{% for %}",
}


class Bytes:
    """An Encoder."""

    vocabulary = Vocabulary((b"",) * 256, frozenset(), frozenset())
    raw_beginning = chat_beginning = ()

    def tokenize(self, text: str, special: bool) -> list[int]:
        return list(text.encode())


async def ask(client: httpx.AsyncClient, content: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}]}
    return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("name", TEMPLATES)
async def test_one_chat_is_lost_and_others_are_served_meanwhile(name: str) -> None:
    template = Renderer(BOOM.format(TEMPLATES[name]), {})
    app = make_app(ScriptedEngine(), tokenizer=Tokenizer(Bytes(), template))

    async with client_of(app) as client:
        lost = asyncio.create_task(ask(client, "boom"))
        meanwhile = await ask(client, "hello")
        health = await client.get("/health")
        error = (await lost).json()["error"]
        after = await ask(client, "hello")

    assert [meanwhile.status_code, health.status_code, after.status_code] == [200] * 3
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")


@pytest.mark.parametrize("name", AT_THE_START)
async def test_a_template_is_not_compiled_in_the_service(name: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template (takes|cannot be read)"):
        await asyncio.to_thread(Renderer, AT_THE_START[name], {})


def test_a_chat_may_have_so_many_bytes_and_no_more() -> None:
    template = Renderer("{{ messages[0].content }}", {})
    render = partial(template.render, [{"content": "\u4e2d" * 100_000}], (), {})

    assert len(render(max_bytes=300_000)) == 100_000
    with pytest.raises(OverflowError):
        render(max_bytes=299_999)


def test_texts_and_numbers_reach_the_template_as_they_are() -> None:
    texts = ["\n\r\u2028\0", "\U0001f600\ud800", '"\\', 10**40, 0.1, float("inf"), None, True]
    template = Renderer("{{ messages[0].content }}", {})

    assert template.render([{"content": texts}], (), {}) == str(texts)


def test_the_process_is_started_anew_whoever_ended_it() -> None:
    template = Renderer("{{ messages[0].content }}", {})
    for worker in template._idle:
        worker.process.kill()
        worker.process.wait()

    assert template.render([{"content": "a"}], (), {}) == "a"


PARENT = """
import sys, threading
from local_models.renderer import Renderer
template = Renderer(sys.argv[1], {})
print(template._idle[0].process.pid, flush=True)
threading.Thread(target=template.render, args=([{"content": "boom"}], (), {})).start()
while template._idle: pass
print("busy", flush=True)
sys.stdin.read()
"""


def test_a_process_ends_soon_after_the_service_that_started_it() -> None:
    """The service is killed, while a template runs without end."""
    command = [sys.executable, "-c", PARENT, BOOM.format(TEMPLATES["a loop"])]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment()) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == b"busy\n"
        renderer = os.pidfd_open(pid)
        parent.send_signal(signal.SIGKILL)

    poll = select.poll()
    poll.register(renderer)
    assert poll.poll(1000 * GUARD_S)
    os.close(renderer)


def test_a_process_has_no_secret_of_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PICOSPEC_VERIFIER_KEY", "HF_TOKEN", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/secret")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "relative", str(tmp_path)]))

    assert "/secret" not in environment().values()
    assert environment()["PYTHONPATH"].split(os.pathsep)[1:] == [str(tmp_path)]


def test_a_process_starts_in_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("models.py", "json.py", "jinja2.py"):
        (tmp_path / name).write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)

    assert Renderer("a", {}).render([], (), {}) == "a"
