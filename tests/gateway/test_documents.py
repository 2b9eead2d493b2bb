"""The API describes itself truly, and its page loads nothing from elsewhere."""

from __future__ import annotations

import re
from importlib.metadata import version

import jsonschema
import pytest

from picospec.gateway.documents import openapi
from picospec.gateway.routes import ROUTES
from tests.gateway.scripted import Body, ScriptedEngine, ask, client_of, make_app

USER = {"role": "user", "content": "Hi"}


def errors_of(path: str, body: object) -> list[str]:
    """Return where a body breaks the schema that the document has for its path."""
    document: Body = openapi(ROUTES)
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": document["components"]}
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
