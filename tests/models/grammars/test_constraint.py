"""What is no constraint is an error that names its part."""

from __future__ import annotations

import pytest

from picospec.models.errors import InvalidGrammar
from picospec.models.grammars import MAX_BYTES, Constraint


@pytest.mark.parametrize(
    ("data", "kind", "value"),
    [
        (b'{"json": {"b": 1, "a": 2}}', "json", '{"b": 1, "a": 2}'),
        (b'{"json_object": true}', "json_object", True),
        (b'{"regex": "a"}', "regex", "a"),
        (b'{"choice": ["a", "b"], "regex": null}', "choice", ["a", "b"]),
        (b'{"grammar": "start: \\"a\\""}', "grammar", 'start: "a"'),
    ],
)
def test_a_constraint_is_of_one_kind(data: bytes, kind: str, value: object) -> None:
    constraint = Constraint.of(data)

    assert (constraint.kind, constraint.value) == (kind, value)


@pytest.mark.parametrize(
    ("data", "where", "reason"),
    [
        (b"{}", "", "exactly one of"),
        (b"[]", "", "array"),
        (b"", "", "truncated"),
        (b'{"regex": "a", "json_object": true}', "", "exactly one of"),
        (b'{"regex": 5}', "", "regex"),
        (b'{"structural_tag": "a"}', "", "structural_tag"),
        (b'{"json": true}', "json", "object"),
        (b'{"json": "{}"}', "json", "object"),
        (b'{"json_object": false}', "json_object", "true"),
        (b'{"choice": []}', "choice", "empty"),
        (b'{"json": ' + b'{"a":' * 20_000, "", "recursion"),
        (b'{"regex": "%s"}' % (b"a" * MAX_BYTES), "", "larger"),
    ],
)
def test_what_is_none_names_its_part(data: bytes, where: str, reason: str) -> None:
    with pytest.raises(InvalidGrammar, match=reason) as raised:
        Constraint.of(data)

    assert raised.value.where == where
    assert raised.value.field("x") == (f"x.{where}" if where else "x")
