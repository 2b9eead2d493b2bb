"""Tells whether a chat template reads the parts of a message, by vLLM's rule.

It does where a loop goes over the content of a message: over `message.content`, where `message`
is an item of a loop over `messages`, over `content` outside of a macro, or over the parameter
of a macro that is called with such a content. `messages` may have been assigned to other names
before, filtered or sliced. A template that cannot be told gets texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jinja2 import nodes


def iterates_content(template: nodes.Template) -> bool:
    """Return whether the content of a message is a list of parts for a template."""
    try:
        return any(_content_loops(template))
    except _Unclear:
        return False


class _Unclear(Exception):
    """A loop or an assignment gives several names at once."""


def _content_loops(root: nodes.Template) -> Iterator[bool]:
    """Yield True for each loop over the content of a message."""
    messages = list(_items(root))
    parameters = _parameters(root, messages)
    for loop in root.find_all(nodes.For):
        name = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        if _is_content(loop.iter, messages) or name in parameters.get(id(loop), ("content",)):
            _name(loop.target)
            yield True


def _items(root: nodes.Template) -> Iterator[str]:
    """Yield the names that loops over the messages give to a message."""
    names = ["messages"]
    for name in names:  # it grows meanwhile
        for assigned in root.find_all(nodes.Assign):
            if _is_of(assigned.node, name) and (found := _name(assigned.target)) not in names:
                names.append(found)
    for loop in root.find_all(nodes.For):
        if any(_is_of(loop.iter, name) for name in names):
            yield _name(loop.target)


def _parameters(
    root: nodes.Template, messages: Sequence[str]
) -> Mapping[int, frozenset[str | None]]:
    """Return, by the id of each loop in a macro, the parameters that are contents there."""
    found: dict[int, frozenset[str | None]] = {}
    for macro in root.find_all(nodes.Macro):
        given = frozenset(_given(root, macro, messages))
        for loop in macro.find_all(nodes.For):
            found[id(loop)] = given or found.get(id(loop), given)
    return found


def _given(
    root: nodes.Template, macro: nodes.Macro, messages: Sequence[str]
) -> Iterator[str | None]:
    names = [argument.name for argument in macro.args]
    for call in root.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            values = [*zip(names, call.args, strict=False)]
            values += [(each.key, each.value) for each in call.kwargs if each.key in names]
            yield from (name for name, value in values if _is_content(value, messages))


def _is_content(node: nodes.Node, messages: Sequence[str]) -> bool:
    return any(_is_of(node, message, "content") for message in messages)


def _is_of(node: nodes.Node | None, name: str, field: str | None = None) -> bool:
    """Tell whether a node is a variable or its field, perhaps filtered, tested or sliced."""
    match node:
        case nodes.Filter() | nodes.Test():
            return _is_of(node.node, name, field)
        case nodes.Getitem(arg=nodes.Slice()):
            return _is_of(node.node, name, field)
        case nodes.Getitem(arg=nodes.Const(value=str(key))) | nodes.Getattr(attr=key):
            return key == field and _is_variable(node.node, name)
    return field is None and _is_variable(node, name)


def _is_variable(node: nodes.Node | None, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _Unclear
    return target.name
