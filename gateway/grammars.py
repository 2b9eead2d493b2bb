"""Writes grammars that make a model write tool calls, in the Lark syntax of llguidance.

The parser of a format reads all text that the format's grammar accepts as calls. JSON has the
spaces of chat templates, because models have learnt these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from gateway.json_schemas import COMBINING, Schema, check_json, encode

Special = Mapping[str, int]
"""Maps the texts that are special tokens in a model to their ids."""


class Tags(NamedTuple):
    """A family of models writes these tags around its reasoning."""

    opening: str
    closing: str
    keeps_space: bool = False
    """True if the space after either tag is text."""

    @property
    def pair(self) -> tuple[str, str]:
        """Return the two tags as they are written."""
        return self.opening, self.closing


_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_STRING_KEYWORDS: Final = frozenset(
    {"type", "title", "description", "default", "examples", "enum", "const", "$defs"}
    | {"definitions", "minLength", "maxLength", "pattern"}
)
_ANY: Final = "(?s:.*)"
_LARK: Final = re.compile(r"^[ \t]*(%llguidance\b|start[ \t]*:)", re.MULTILINE)
"""llguidance takes a grammar without a match of this for GBNF."""


def literal(text: str) -> str:
    """Return a text as a quoted Lark string."""
    return encode(text)


def marker(text: str, special: Special) -> str:
    """Return the Lark form of a text: its token's id if it is a special token, else quoted."""
    return f"<[{special[text]}]>" if text in special else literal(text)


def json_value(schema: Schema) -> str:
    """Return the part of a Lark rule that stands for a JSON value of the schema."""
    return "%json " + encode({**schema, "x-guidance": _SPACING})


def arguments(schema: Schema) -> str:
    """Return the part of a rule for the object of a call's arguments: only declared ones. A
    schema of an object that declares no arguments allows any."""
    check_json(schema)
    undeclared = schema.get("type") == "object" and "properties" not in schema
    closed = {} if undeclared or COMBINING & schema.keys() else {"additionalProperties": False}
    return json_value({**closed, **schema, "type": "object"})


def string_until(rule: str, schema: Schema, end: str) -> str:
    """Return Lark rules for `rule`: a string of the schema as plain text, followed by `end`.

    The string does not contain the last line of `end`. Raises ValueError for a schema that
    demands more than a length and a pattern.
    """
    if unknown := schema.keys() - _STRING_KEYWORDS:
        raise ValueError(f"{unknown.pop()} is not supported in this model's format of calls")
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return f"{rule}: {' | '.join(literal(f'{value}{end}') for value in values)}\n"
    length = f"{_limit(schema, 'minLength') or 0},{_limit(schema, 'maxLength')}"
    tag, close = escaped(end.split("\n")[-1]), escaped(end)
    parts = [f"/(?s:.{{{length}}}){close}/", f"~/{_ANY}{tag}(?s:.+)/"]
    if isinstance(pattern := schema.get("pattern"), str):
        parts.append(f"/{_unanchored(pattern)}{close}/")
    return f"{rule}[lazy]: {rule.upper()}\n{rule.upper()}: {' & '.join(parts)}\n"


def _limit(schema: Schema, name: str) -> str:
    limit = schema.get(name)
    if limit is not None and type(limit) is not int:
        raise ValueError(f"{name} must be an integer")
    return "" if limit is None else str(limit)


def _unanchored(pattern: str) -> str:
    """Return a regular expression that matches a whole text if `pattern` is found in it."""
    before = "" if pattern.startswith("^") else _ANY
    after = "" if pattern.endswith("$") else _ANY
    inner = pattern.removeprefix("^").removesuffix("$")
    return f"{before}(?:{_quoted(inner)}){after}"


def _quoted(pattern: str) -> str:
    """Return a regular expression in its form between slashes."""
    return re.sub(r"(\\.)|/", lambda at: at[1] or r"\/", pattern).replace("\n", r"\n")


def repeated(call: str, before: str, *, parallel: bool) -> str:
    """Return a rule for one call or, in parallel, several, separated by `before`."""
    return f"{call} ({before} {call})*" if parallel else call


def escaped(text: str) -> str:
    """Return a regular expression for a text, in its form between slashes."""
    return re.escape(text).replace("\n", "n").replace("/", r"\/")


def content(constraint: Mapping[str, object]) -> str:
    """Return the rule for `content` that conforms to a constraint. Raises ValueError."""
    match constraint:
        case {"json": Mapping() as schema}:
            return f"content: {json_value(schema)}\n"
        case {"json_object": True}:
            return f"content: {json_value({'type': 'object'})}\n"
        case {"regex": str(pattern)}:
            return f"content: /{_quoted(pattern)}/\n"
        case {"choice": list(texts)}:
            return f"content: {' | '.join(literal(str(text)) for text in texts)}\n"
        case {"grammar": str(rules)} if _LARK.search(rules):
            return f"content: {nested(rules)}\n"
    raise ValueError("a grammar in GBNF does not go with tools or reasoning; one in Lark does")


def nested(rules: str) -> str:
    """Return a grammar in Lark as a part of a larger one."""
    return f"%lark {{\n{rules}\n}}"


def in_lark(rules: str) -> dict[str, object]:
    """Return the constraint of a text by these rules, marked so that they are not GBNF."""
    return {"grammar": rules if _LARK.search(rules) else f"%llguidance {{}}\n{rules}"}


def free_text(trigger: str, special: Special, untagged: str) -> str:
    """Return rules for `free`, text without calls, and `before`, text up to the first trigger.

    untagged: regular expression with which neither begins.
    """
    unlike = f" & ~/{untagged}{_ANY}/" if untagged else ""
    text = f"free: TEXT\nTEXT: /{_ANY}/{unlike}"
    if not trigger:
        return f"{text}\n"
    if trigger in special:
        return f"{text}\nbefore: TEXT {marker(trigger, special)}\n"
    ends = f"{_ANY}{escaped(trigger)}"
    return f"{text} & ~/{ends}{_ANY}/\nbefore[lazy]: BEFORE\nBEFORE: /{ends}/{unlike}\n"


def reasoning(tags: Tags, special: Special) -> str:
    """Return rules for `closing`, which is the rest of the reasoning, and `reasoning`."""
    opening = marker(tags.opening, special)
    rules = f"reasoning: {opening} closing\nGAP: /\\n{{0,2}}/\n"
    if tags.closing in special:
        closing = marker(tags.closing, special)
        return f"{rules}closing: THOUGHT {closing} GAP\nTHOUGHT: /{_ANY}/\n"
    return f"{rules}closing: thought GAP\nthought[lazy]: /{_ANY}{escaped(tags.closing)}/\n"
