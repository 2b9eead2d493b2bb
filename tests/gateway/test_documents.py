"""The API describes itself truly, and its page loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from gateway.answer_fields import NEUTRAL
from gateway.documents import openapi
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.responses import ResponsesRequest
from gateway.routes import ROUTES
from tests.gateway.cases import CASES, Case
from tests.gateway.scripted import (
    Body,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
)

USER = {"role": "user", "content": "Hi"}


@cache
def document() -> Body:
    return openapi(ROUTES)


def errors_of(path: str, body: object) -> list[str]:
    """Return where a body breaks the schema that the document has for its path."""
    content = document()["paths"][path]["post"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": document()["components"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(body)
    return [error.json_path for error in found]


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/chat/completions", {"messages": []}, "$.messages"),
        ("/v1/chat/completions", {"messages": [USER], "top_p": 2}, "$.top_p"),
        ("/v1/chat/completions", {"messages": [USER], "max_tokens": -2}, "$.max_tokens"),
        ("/v1/chat/completions", {"messages": [USER], "stop": ["a"] * 17}, "$.stop"),
        ("/v1/chat/completions", {"messages": [USER], "tool_choice": "any"}, "$.tool_choice"),
        ("/v1/chat/completions", {"messages": [USER], "logit_bias": 7}, "$.logit_bias"),
        ("/v1/completions", {"prompt": 7}, "$.prompt"),
        ("/v1/completions", {"prompt": "a", "guided_choice": []}, "$.guided_choice"),
        ("/detokenize", {"tokens": ["a"]}, "$.tokens[0]"),
    ],
)
async def test_what_breaks_the_published_schema_is_a_400(
    path: str, body: Body, where: str
) -> None:
    answer = await ask(body, path=path)

    assert answer.status_code == 400
    assert errors_of(path, body) == [where]


async def test_the_document_names_every_route_and_only_what_it_defines() -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as client:
        answer = await client.get("/openapi.json")

    document = answer.json()
    assert document["info"]["version"] == version("picospec")
    assert document["paths"].keys() == {route.path.replace(":path", "") for route in ROUTES}
    named = set(re.findall(r'"#/components/schemas/(\w+)"', answer.text))
    assert named <= document["components"]["schemas"].keys()
    jsonschema.Draft202012Validator.check_schema(
        document["components"]["schemas"]["ChatRequest"]
    )


async def test_the_page_shows_every_path_and_loads_nothing() -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as client:
        answer = await client.get("/docs")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert all(f"{route.method} " in answer.text for route in ROUTES)
    assert re.findall(r"(?:src|href)=['\"]?([^'\" >]+)", answer.text) == ["openapi.json"]
    assert "<script" not in answer.text


# The page is small, comes from this service alone, and may do nothing but what it needs.

PAGE = Path(__file__).parents[2] / "gateway" / "page"
VENDOR = PAGE / "vendor"
LIBRARIES = tomllib.loads((VENDOR / "vendor.toml").read_text())
SERVED = [
    path
    for path in sorted(PAGE.rglob("*"))
    if path.suffix in (".html", ".css", ".js", ".json", ".svg")
]
DIGESTS = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in SERVED}


def address(path: Path) -> str:
    name = path.relative_to(PAGE).as_posix()
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("path", SERVED, ids=address)
async def test_every_file_is_served_without_a_key_with_its_type_and_a_strict_policy(
    path: Path,
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as client:
        answer = await client.get(address(path), headers={"accept": "text/html, */*"})

    types = {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".json": "application/json",
        ".svg": "image/svg+xml",
    }
    assert hashlib.sha256(answer.content).hexdigest() == DIGESTS[path]
    assert answer.headers["content-type"] == f"{types[path.suffix]}; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.strip().split(" ", 1)
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_a_browser_that_has_a_file_gets_a_304_until_it_changes() -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        etag = (await client.get("/page/main.js")).headers["etag"]
        same = await client.get("/page/main.js", headers={"if-none-match": etag})
        other = await client.get("/page/main.js", headers={"if-none-match": '"other"'})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/vendor/vendor.toml", "/page/../app.py"]
)
async def test_nothing_else_is_served(path: str) -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        assert (await client.get(path)).status_code == 404


def test_no_file_names_another_host() -> None:
    ours = [path for path in SERVED if path.parent != VENDOR]
    found = {
        url for path in ours for url in re.findall(r"https?://[^\s\"'`)\\]+", path.read_text())
    }

    assert found == {"http://www.w3.org/2000/svg", "https://opencode.ai/config.json"}


def test_no_file_of_ours_parses_text_as_html_or_as_code() -> None:
    ours = [path for path in SERVED if path.parent != VENDOR]
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        r"|<script>|\sstyle=|\son\w+=\""
    )

    assert [path.name for path in ours if forbidden.search(path.read_text())] == []


def test_each_vendored_library_is_the_one_that_its_record_names() -> None:
    shipped = {path.name for path in VENDOR.glob("*.js")}

    assert shipped == LIBRARIES.keys()
    for name, record in LIBRARIES.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == record["sha256"]
        assert (VENDOR / record["licence_file"]).stat().st_size > 1000


# What known clients send fits the published schema. No field of openai's SDK was forgotten:
# each is served, or known as one that changes an answer, or listed here as one that cannot.

CLIENTS = [case for case in CASES if "client" in case.line.given]


@pytest.mark.parametrize("case", CLIENTS, ids=str)
def test_the_request_of_a_client_fits_the_published_schema(case: Case) -> None:
    assert errors_of(case.endpoint, case.body) == []


KNOWN = {*NEUTRAL, "n_cmpl", "n_predict"}

OPENAI_HARMLESS = {
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
}  # fmt: skip
RESPONSES_HARMLESS = {
    "access_programs", "background_options", "image", "prompt_cache_options",
    "prompt_cache_retention",
}  # fmt: skip


def test_every_field_of_openais_sdk_has_its_place() -> None:
    chat = set(chats.CompletionCreateParamsBase.__annotations__)
    text = set(completions.CompletionCreateParamsBase.__annotations__)

    assert chat - KNOWN - set(ChatRequest.model_fields) == OPENAI_HARMLESS
    assert text - KNOWN - set(CompletionRequest.model_fields) == {"user"}


def test_every_field_of_a_response_has_its_place() -> None:
    named = set(responses.ResponseCreateParamsBase.__annotations__)

    served = {*ResponsesRequest.model_fields, *ChatRequest.model_fields}
    assert named - KNOWN - served == RESPONSES_HARMLESS
