"""Finds by its source what a module uses of vLLM's objects.

A value is vLLM's if it is imported from there, has a type from there or `Any`, is `self` in a
class that extends one of vLLM's (but for what that class defines), or is reached from such a
value: by attribute, item, call, loop or assignment. What is used are the attributes of such
values, and the fields that are given to vLLM's classes by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

_BY_NAME = ("getattr", "hasattr", "setattr", "_wrap")
"""Calls whose second argument names an attribute of the first."""


class Source:
    """extending: our classes, of other modules too, that extend one of vLLM's."""

    def __init__(self, text: str, extending: dict[str, set[str]]) -> None:
        self._tree = ast.parse(text)
        self._nodes = list(ast.walk(self._tree))
        self._imported = set(self._imports())
        self._theirs = set(self._imported)
        self._fields: set[str] = set()  # of `self`
        self._extending = extending
        self._classes = [each for each in self._nodes if isinstance(each, ast.ClassDef)]
        for each in filter(self._extends, self._classes):
            extending[each.name] = set(_defined(each)).union(
                *(extending.get(_name(base), ()) for base in each.bases)
            )
        for _ in range(4):  # assignments before what they assign are read again
            for node in self._nodes:
                self._learn(node)

    def used(self) -> set[str]:
        return set(self._used())

    def _imports(self) -> Iterator[str]:
        for node in self._nodes:
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("vllm."):
                yield from (each.asname or each.name for each in node.names)
            if isinstance(node, ast.Import):
                yield from (
                    each.asname or "vllm" for each in node.names if each.name[:4] == "vllm"
                )

    def _extends(self, node: ast.ClassDef) -> bool:
        return any(
            _name(base) in self._imported | self._extending.keys() for base in node.bases
        )

    def _used(self) -> Iterator[str]:
        for node in self._nodes:
            if isinstance(node, ast.Attribute) and self._is_theirs(node.value):
                yield node.attr
            elif isinstance(node, ast.Call) and _name(node.func) in _BY_NAME:
                yield from self._named(node.args[1])
            elif isinstance(node, ast.Call) and _name(node.func) in self._imported:
                yield from (each.arg for each in node.keywords if each.arg)
        for each in filter(self._extends, self._classes):
            for node in ast.walk(each):
                if isinstance(node, ast.Attribute) and _name(node.value) == "self":
                    yield from {node.attr} - self._extending[each.name]

    def _named(self, node: ast.expr) -> Iterator[str]:
        """Yield a constant; of a name that loops over a table, all names in the module's."""
        if isinstance(node, ast.Constant):
            yield str(node.value)
            return
        for table in self._tree.body:
            if isinstance(table, ast.AnnAssign) and isinstance(table.value, ast.Tuple):
                texts = (getattr(each, "value", "") for each in ast.walk(table.value))
                yield from (text for text in texts if _is_public(text))

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.arg(annotation=type_) | ast.AnnAssign(annotation=type_) if self._typed(
                type_
            ):
                self._mark(
                    node.target if isinstance(node, ast.AnnAssign) else ast.Name(node.arg)
                )
            case ast.ExceptHandler(type=kind, name=str(name)) if self._typed(kind):
                self._theirs.add(name)
            case ast.Lambda(args=given):
                self._theirs.update(each.arg for each in given.args)
            case ast.Assign(targets=targets, value=value) if self._is_theirs(value):
                list(map(self._mark, targets))
            case ast.NamedExpr(target=target, value=value) if self._is_theirs(value):
                self._mark(target)
            case (
                ast.For(target=target, iter=value)
                | ast.comprehension(target=target, iter=value)
            ):
                if self._is_theirs(value):
                    self._mark(target)

    def _typed(self, annotation: ast.expr | None) -> bool:
        words = {
            each.id for each in ast.walk(annotation or ast.Load()) if isinstance(each, ast.Name)
        }
        return bool(words & self._imported) or words == {"Any"}

    def _mark(self, target: ast.expr) -> None:
        match target:
            case ast.Name(id=name):
                self._theirs.add(name)
            case ast.Attribute(attr=name):
                self._fields.add(name)
            case ast.Tuple(elts=parts):
                list(map(self._mark, parts))

    def _is_theirs(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self._theirs
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return name in self._fields or self._is_inherited(name)
            case ast.Call(func=ast.Name(id="super")):
                return any(map(self._extends, self._classes))
            case (
                ast.Attribute(value=inner)
                | ast.Subscript(value=inner)
                | ast.Call(func=inner)
                | ast.Await(value=inner)
            ):
                return self._is_theirs(inner)
            case ast.BoolOp(values=parts):
                return any(map(self._is_theirs, parts))
        return False

    def _is_inherited(self, name: str) -> bool:
        extending = filter(self._extends, self._classes)
        return any(name not in self._extending[each.name] for each in extending)


def _is_public(text: object) -> bool:
    return isinstance(text, str) and text.isidentifier() and text[0] != "_"


def _name(node: ast.AST) -> str:
    return str(getattr(node, "id", getattr(node, "attr", "")))


def _defined(node: ast.ClassDef) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each.name
        elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield each.attr
