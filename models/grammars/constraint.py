"""A client constrains the text of an answer in exactly one of five ways."""

from __future__ import annotations

from typing import Final, Self

import msgspec

from picospec.models.errors import InvalidGrammar

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
            found = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidGrammar("", str(error)) from None
        if len(found._kinds) != 1:
            raise InvalidGrammar("", f"exactly one of {', '.join(cls.__struct_fields__)}")
        if found.kind == "json" and not bytes(found.json).startswith(b"{"):
            raise InvalidGrammar("json", "a schema is an object")
        if found.json_object is False:
            raise InvalidGrammar("json_object", "only true has a meaning")
        if found.choice is not None and not found.choice:
            raise InvalidGrammar("choice", "empty")
        return found

    @property
    def kind(self) -> str:
        return self._kinds[0]

    @property
    def value(self) -> str | list[str] | bool:
        """Return the constraint's value; a JSON schema is the text that the client sent."""
        found = getattr(self, self.kind)
        return bytes(found).decode() if isinstance(found, msgspec.Raw) else found

    @property
    def _kinds(self) -> list[str]:
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return [name for name, value in given.items() if value not in (None, msgspec.Raw())]
