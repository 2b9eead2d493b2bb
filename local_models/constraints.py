"""A client constrains the text of an answer in exactly one of five ways."""

from __future__ import annotations

from typing import Final, Self

import msgspec

from local_models.errors import InvalidGrammar
from speculation.untrusted import Malformed, decode_json

NAME: Final = "structured_outputs"
"""An Open asks for a grammar by the extra of this name."""

MAX_BYTES: Final = 256 * 1024
"""A constraint has at most this many bytes as JSON. The tools of a large agent take 100 kB in
one grammar."""


class Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Constraint is the extra `structured_outputs` of a request."""

    json: msgspec.Raw = msgspec.Raw()
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read a constraint from JSON. Raises InvalidGrammar."""
        if len(data) > MAX_BYTES:
            raise InvalidGrammar("", f"larger than {MAX_BYTES} bytes")
        try:
            constraint = decode_json(data, cls)
        except Malformed as error:
            raise InvalidGrammar("", str(error)) from None
        if len(constraint._kinds) != 1:
            raise InvalidGrammar("", f"exactly one of {', '.join(cls.__struct_fields__)}")
        if constraint.kind == "json" and not bytes(constraint.json).startswith(b"{"):
            raise InvalidGrammar("json", "a schema is an object")
        if constraint.json_object is False:
            raise InvalidGrammar("json_object", "only true has a meaning")
        if constraint.choice is not None and not constraint.choice:
            raise InvalidGrammar("choice", "empty")
        return constraint

    @property
    def kind(self) -> str:
        return self._kinds[0]

    @property
    def value(self) -> str | list[str] | bool:
        """Return the constraint's value; a JSON schema is the text that the client sent."""
        value = getattr(self, self.kind)
        return bytes(value).decode() if isinstance(value, msgspec.Raw) else value

    @property
    def _kinds(self) -> list[str]:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return [name for name, value in values.items() if value not in (None, msgspec.Raw())]
