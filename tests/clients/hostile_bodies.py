"""Requests whose schemas, grammars or tools are wrong, huge, recursive or exponential."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.models.grammars.hostile import COMPILED, REJECTED

Body = dict[str, Any]
Make = Callable[[Random], Any]

JSON_FIELDS = ("guided_json", "json_schema", "structured_outputs", "response_format", "tools")


def nested(r: Random) -> Any:  # noqa: ANN401
    schema: Any = {"type": r.choice(["integer", "string", "banana"])}
    for _ in range(r.choice([20, 100, 400])):
        schema = r.choice([{"type": "array", "items": schema}, {"anyOf": [schema]}])
    return schema


def refs(times: int) -> Make:
    """Return what makes definitions of which each refers to the next one `times` times."""

    def make(r: Random) -> Any:  # noqa: ANN401
        depth = r.choice([8, 30, 200, 1500])
        names = "abcdef"[:times]
        definitions: Body = {f"d{depth}": {"type": r.choice(["integer", "null", 5])}}
        for i in range(depth):
            inner = {name: {"$ref": f"#/$defs/d{i + 1}"} for name in names}
            definitions[f"d{i}"] = {"properties": inner, "required": list(names)}
        return {"$ref": "#/$defs/d0", "$defs": definitions}

    return make


def circle(r: Random) -> Any:  # noqa: ANN401
    size = r.randint(1, 40)
    return {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{(i + 1) % size}"} for i in range(size)},
    }


def tree(r: Random) -> Any:  # noqa: ANN401
    inner = {f"k{i}": {"$ref": "#"} for i in range(r.randint(1, 30))}
    return {"type": "object", "properties": inner, "required": list(inner)[: r.randint(0, 2)]}


def crossed(keyword: str) -> Make:
    return lambda r: {
        keyword: [
            {"anyOf": [{"properties": {f"k{i}{k}": {}}} for k in range(r.randint(1, 6))]}
            for i in range(r.randint(2, 25))
        ]
    }


def pattern(r: Random) -> Any:  # noqa: ANN401
    return {"type": "string", "pattern": expression(r)}


def expression(r: Random) -> str:
    n, m = r.randint(1, 3000), r.randint(2, 99)
    return r.choice(
        [
            "(" * n,
            "(" * n + "a" + ")" * n,
            f"(a?){{{m}}}a{{{m}}}",
            f"(((a{{{m}}}){{{m}}}){{{m}}}){{{m}}}",
            f".*a.{{{n}}}",
            "(a+)+$" * m,
            r"(\w+\s?)*" * m,
            "(?=a)b",
            r"(a)\1",
            "[" + "a-z" * n,
            "|".join(str(r.random()) for _ in range(n)),
            "\\p{Nope}",
            "[^\\s\\S]",
            "a{99999999}",
            "\x00\ud7ff😀{1,9}",
        ]
    )


def values(r: Random) -> Any:  # noqa: ANN401
    n = r.choice([0, 1, 1000, 9000])
    odd: list[Any] = [
        None,
        {},
        [],
        [[[]]],
        1e308,
        -0.0,
        "\u2028",
        "</tool_call>",
        {"a": {"b": 1}},
    ]
    return {"enum": [f"{i}{r.random()}" for i in range(n)] + r.sample(odd, r.randint(0, 9))}


def fields(r: Random) -> Any:  # noqa: ANN401
    n = r.choice([10, 300, 2500])
    names = {
        r.choice(["a", "é", "\n", '"', "\\", "</", "💥"]) * r.randint(0, 9) + f"{i}": {}
        for i in range(n)
    }
    return {"type": "object", "properties": names, "required": list(names)[: r.randint(0, n)]}


def numeric(r: Random) -> Any:  # noqa: ANN401
    some = [0, -1, 1e308, -1e308, 1e-308, 10**30, 3.3, 1000003, "7", None, True, [], 2**63]
    names = ["minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"]
    return {
        "type": r.choice(["integer", "number"]),
        **{n: r.choice(some) for n in r.sample(names, 3)},
    }


def lengths(r: Random) -> Any:  # noqa: ANN401
    some = [-1, 0, 1, 10**9, 10**20, 1.5, "3", None]
    kind, what = r.choice([("string", "Length"), ("array", "Items"), ("object", "Properties")])
    return {"type": kind, f"min{what}": r.choice(some), f"max{what}": r.choice(some)}


def misplaced(r: Random) -> Any:  # noqa: ANN401
    names = [
        "type",
        "properties",
        "items",
        "required",
        "$ref",
        "$defs",
        "anyOf",
        "enum",
        "const",
    ]
    names += ["pattern", "format", "prefixItems", "additionalProperties", "if", "not", "$id"]
    some = [7, None, "", "x", [], {}, [7], {"a": 7}, True, [[]], "#/a/b", "file:///etc/passwd"]
    return {name: r.choice(some) for name in r.sample(names, r.randint(1, 4))}


def noise(r: Random, depth: int = 5) -> Any:  # noqa: ANN401
    if not depth or r.random() < 0.2:
        return r.choice([None, 1, "a", [], {}, "object", "string", True])
    keys = ["properties", "items", "anyOf", "type", "$ref", "allOf", "$defs", "not", "a"]
    if r.random() < 0.3:
        return [noise(r, depth - 1) for _ in range(r.randint(0, 4))]
    return {k: noise(r, depth - 1) for k in r.sample(keys, r.randint(1, 4))}


def rules(r: Random) -> str:
    n, last = r.choice([5, 60, 2000]), r.choice(['"a"', "missing", "/(/", "<[99999999]>", '""'])
    return r.choice(
        [
            "\n".join(
                ["start: t0", *(f"t{i}: t{i + 1} t{i + 1}" for i in range(n)), f"t{n}: {last}"]
            ),
            "\n".join(
                ["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(n)), f"T{n}: {last}"]
            ),
            "\n".join(["start: t0", *(f"t{i}: t{i + 1}?" for i in range(n)), f"t{n}: {last}"]),
            f"start: {'(' * n}{last}{')' * n}",
            f"start: s\ns: s s | s s s | {last} |",
            f"start: %json {json.dumps(misplaced(r))}",
            f"start: a\na[stop={last}]: /.*/",
            f"start: a{{{n * n}}}\na: {last}",
            f'root ::= "a" root | [^{chr(r.randint(32, 9999))}] | x{n}',
            f"%import /etc/passwd\nstart: {last}",
            f'start: @a{n} | @sub\n%llguidance {{"no_forcing": {n}}}',
            "".join(chr(r.randint(1, 0xD7FF)) for _ in range(n)),
        ]
    )


def choices(r: Random) -> Any:  # noqa: ANN401
    n = r.choice([0, 1, 900, 1024, 1025])
    return r.choice(
        [[f"{r.random()}" for _ in range(n)], ["a" * 9999, ""], "a", [7], [[""]], None]
    )


def tool(parameters: Any, r: Random) -> Body:  # noqa: ANN401
    function = {"name": f"f{r.randrange(99)}", "parameters": parameters}
    return {"type": "function", "function": {**function, "strict": r.random() < 0.7}}


def tool_list(r: Random) -> Body:
    schemas = [numeric, fields, values, circle, tree, misplaced]
    many = [tool(r.choice(schemas)(r), r) for _ in range(r.choice([1, 3, 30, 128, 129, 200]))]
    return {"tools": many, "tool_choice": r.choice(["auto", "required", "none"])}


def broken_tools(r: Random) -> Body:
    some = [None, 7, "", [], {}, "a b", {"type": "function"}, "f" * 65, True, [[]], {"a": []}]
    one = tool({}, r)
    place = r.choice([one, one["function"]])
    place[r.choice(["type", "function", "name", "parameters", "strict", "description"])] = (
        r.choice(some)
    )
    return {
        "tools": r.choice([[one], one, [one, one], [[one]]]),
        "tool_choice": r.choice(["auto", "required", *some]),
    }


def broken_format(r: Random) -> Body:
    some = [
        None,
        7,
        "",
        [],
        {},
        "json_schema",
        "json_object",
        "text",
        {"schema": {}},
        {"name": 1},
    ]
    return {
        "response_format": {
            "type": r.choice(some),
            "json_schema": r.choice(some),
            "schema": r.choice(some),
        },
        r.choice(["x", "guided_json", "tools"]): r.choice(some),
    }


SCHEMAS: dict[str, Make] = {
    "nested": nested,
    **{f"refs x {n}": refs(n) for n in (1, 2, 6)},
    "circle": circle,
    "tree": tree,
    **{f"crossed {k}": crossed(k) for k in ("allOf", "anyOf", "oneOf")},
    "pattern": pattern,
    "values": values,
    "fields": fields,
    "numeric": numeric,
    "lengths": lengths,
    "misplaced": misplaced,
    "noise": noise,
    "large": lambda r: {"description": "a" * r.choice([1000, 130_000, 140_000, 3_000_000])},
}
OTHERS: dict[str, Callable[[Random], Body]] = {
    "regex": lambda r: {"guided_regex": expression(r)},
    "rules": lambda r: {r.choice(["grammar", "guided_grammar"]): rules(r)},
    "choices": lambda r: {"guided_choice": choices(r)},
    "tool list": tool_list,
    "broken tools": broken_tools,
    "broken format": broken_format,
}
KNOWN = [(kind, value) for kind, value, _ in REJECTED.values()] + list(COMPILED.values())
FAMILIES = [*SCHEMAS, *OTHERS, "known"]


def asks(field: str, schema: Any, r: Random) -> Body:  # noqa: ANN401
    """Return the request's part that asks for JSON of a schema by one of JSON_FIELDS."""
    match field:
        case "structured_outputs":
            return {field: {"json": schema}}
        case "response_format":
            named = {"name": "n", "schema": schema}
            return {field: {"type": "json_schema", "json_schema": named}}
        case "tools":
            return {field: [tool(schema, r)], "tool_choice": r.choice(["required", "auto"])}
    return {field: schema}


def hostile(seed: int) -> tuple[str, Body]:
    """Return the family and the fields of one request; the families take turns."""
    r, family = Random(seed), FAMILIES[seed % len(FAMILIES)]
    if family in OTHERS:
        return family, OTHERS[family](r)
    if family in SCHEMAS:
        return family, asks(r.choice(JSON_FIELDS), SCHEMAS[family](r), r)
    kind, value = r.choice(KNOWN)
    if kind == "json":
        return family, asks(r.choice(JSON_FIELDS), value, r)
    return family, {"structured_outputs": {kind: value}}
