"""Finds the calls of vLLM's that a function of ours in their place would not take.

A new version of vLLM may call what we replace with one argument more, at a place that no test
reaches. So before a model loads, each call in vLLM's source is bound to the signature of ours.
Both are read as syntax trees, because modules of workers must not be imported elsewhere.

The type of a callee is not known. A call of a patched name counts if vLLM's own function would
take it: else it means another function of that name.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Final

from verifier.vllm_target.patches import Patch

_OURS: Final = Path(__file__).parent

Function = ast.FunctionDef | ast.AsyncFunctionDef

OVERRIDES: Final = {
    "core.scheduler:PicoScheduler": "vllm.v1.core.sched.scheduler:Scheduler",
    "core.sessions:SessionScheduler": "vllm.v1.core.sched.scheduler:Scheduler",
    "worker.graphs:UnequalGraphs": "vllm.v1.worker.gpu.cudagraph_utils:ModelCudaGraphManager",
    "worker.heads:GrammarMasks":
        "vllm.v1.worker.gpu.structured_outputs:StructuredOutputsWorker",
}  # fmt: skip
"""These classes of ours have methods that vLLM calls as those of a class of its own."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A function of vLLM's, and ours in its place."""

    target: str
    """MODULE:NAME of vLLM's."""

    by: str
    """MODULE:NAME of ours, in this package."""

    ours: Signature
    own: Signature | None
    """None if vLLM's source does not define it, as for a method of a queue."""

    callee: tuple[str, ...]
    """The last names of the callee in vLLM's source, such as input_queue, get."""

    def refuses(self, call: ast.Call) -> bool:
        """Return True if the call is one of vLLM's own function, and ours does not take it."""
        if _names(call.func, len(self.callee)) != self.callee:
            return False
        if self.own is None:
            return not _binds(call, self.ours)
        return _binds(call, self.own) and not (_binds(call, self.ours) and self._passes(call))

    def _passes(self, call: ast.Call) -> bool:
        """Return False if ours would pass an argument twice: by its place, as a parameter of
        ours of another name, and by the keyword that the call has and ours does not know."""
        kinds = [each.kind for each in self.ours.parameters.values()]
        places = sum(kind is Parameter.POSITIONAL_OR_KEYWORD for kind in kinds)
        ours = list(self.ours.parameters)
        taken = {*list(self.own.parameters if self.own else ())[:places]}.difference(ours)
        return taken.isdisjoint(each.arg for each in call.keywords)


def misfits(vllm: Path, patches: Sequence[Patch]) -> Iterator[str]:
    """Yield what is replaced, by what, and the line of vLLM's call that ours does not take.

    vllm: the folder of the package, of any version.
    """
    replaced = [*_of_patches(vllm, patches), *_of_overrides(vllm)]
    names = {re.escape(".".join(each.callee)) for each in replaced}
    called = re.compile(rf"\b(?:{'|'.join(sorted(names))})\(")
    by_name = defaultdict[tuple[str, ...], list[Replaced]](list)
    for each in replaced:
        by_name[each.callee[-1:]].append(each)
    for path in sorted(vllm.rglob("*.py")):
        if not called.search(text := path.read_text("utf-8")):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            for each in by_name[_names(node.func, 1)]:
                if each.refuses(node):
                    place = f"{path.relative_to(vllm)}:{node.lineno}"
                    yield f"{each.target} by {each.by}, called in {place}"


def _of_patches(vllm: Path, patches: Sequence[Patch]) -> Iterator[Replaced]:
    """Yield the functions of a table. vLLM itself never calls those that it has not."""
    for patch in patches:
        definition = _definition(_OURS, patch.by)
        if patch.form == "added" or definition is None:
            continue
        target = patch.target if patch.name != "forward" else f"{patch.target}_native"
        own = _definition(vllm.parent, target)
        is_method = "." in patch.target.partition(":")[2] and not _is_static(own)
        passed = int(patch.form == "around")  # vLLM's own function
        passed += is_method and not patch.on  # and the instance, which a bound method has
        passed += "." in patch.by.partition(":")[2] or isinstance(definition, ast.ClassDef)
        signature = None if own is None else _signature(own, int(is_method))
        yield Replaced(
            patch.target, patch.by, _signature(definition, passed), signature, _callee(patch)
        )


def _callee(patch: Patch) -> tuple[str, ...]:
    """Return the last names of the callee. A layer is called by its own name, and vLLM's have
    a function for each platform."""
    if patch.name == "forward":
        return (patch.on.rpartition(".")[2],)
    path = patch.target.partition(":")[2].split(".")
    return tuple(path[1:] if len(path) > 2 else path[-1:])


def _of_overrides(vllm: Path) -> Iterator[Replaced]:
    for by, target in OVERRIDES.items():
        ours, own = _definition(_OURS, by), _definition(vllm.parent, target)
        if not isinstance(ours, ast.ClassDef) or not isinstance(own, ast.ClassDef):
            continue
        for method in ours.body:
            name = getattr(method, "name", "__init__")
            overridden = None if name == "__init__" else _member(own.body, name)
            if isinstance(method, Function) and isinstance(overridden, Function):
                names = f"{target}.{name}", f"{by}.{name}"
                yield Replaced(
                    *names, _signature(method, 1), _signature(overridden, 1), (name,)
                )


Definition = Function | ast.ClassDef


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _definition(root: Path, name: str) -> Definition | None:
    """Return the definition of MODULE:NAME, also where the module imports it; None if there is
    none in these sources. root: the folder in which the names of modules begin."""
    module, _, path = name.partition(":")
    folder = root.joinpath(*module.split("."))
    files = folder.with_suffix(".py"), folder / "__init__.py"
    if not (file := next((each for each in files if each.is_file()), None)):
        return None
    body: Sequence[ast.stmt] = _tree(file).body
    result: Definition | None = None
    for part in path.split("."):
        if (result := _member(body, part)) is None:
            origin = _imported_from(body, part)
            return _definition(root, f"{origin}:{path}") if origin else None
        body = result.body
    return result


def _member(body: Sequence[ast.stmt], name: str) -> Definition | None:
    for node in body:
        if isinstance(node, Definition) and node.name == name:
            return node
    return None


def _imported_from(body: Sequence[ast.stmt], name: str) -> str | None:
    for node in body:
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            return node.module
    return None


def _is_static(definition: Definition | None) -> bool:
    decorators = definition.decorator_list if isinstance(definition, Function) else ()
    return any(ast.unparse(each) == "staticmethod" for each in decorators)


def _signature(definition: Definition, passed: int) -> Signature:
    """Return what a caller may pass. passed: the first parameters have got their arguments."""
    if isinstance(definition, ast.ClassDef):
        constructor = _member(definition.body, "__init__")
        if not isinstance(constructor, Function):
            return Signature([_any(Parameter.VAR_POSITIONAL), _any(Parameter.VAR_KEYWORD)])
        return _signature(constructor, max(1, passed))
    arguments = definition.args
    names = [*arguments.posonlyargs, *arguments.args]
    without_default = len(names) - len(arguments.defaults)
    parameters = [
        Parameter(
            each.arg,
            Parameter.POSITIONAL_ONLY
            if i < len(arguments.posonlyargs)
            else Parameter.POSITIONAL_OR_KEYWORD,
            default=Parameter.empty if i < without_default else None,
        )
        for i, each in enumerate(names)
    ][passed:]
    parameters += [_any(Parameter.VAR_POSITIONAL)] if arguments.vararg else []
    for name, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        absent = Parameter.empty if default is None else None
        parameters.append(Parameter(name.arg, Parameter.KEYWORD_ONLY, default=absent))
    parameters += [_any(Parameter.VAR_KEYWORD)] if arguments.kwarg else []
    return Signature(parameters)


def _names(callee: ast.expr, count: int) -> tuple[str, ...]:
    """Return the last `count` names of a callee, or fewer."""
    names: list[str] = []
    while len(names) < count and isinstance(callee, ast.Attribute):
        names.append(callee.attr)
        callee = callee.value
    if len(names) < count and isinstance(callee, ast.Name):
        names.append(callee.id)
    return tuple(reversed(names))


def _any(kind: Any) -> Parameter:
    """Return the parameter `*x` or `**x`, by a constant of Parameter."""
    return Parameter(f"any_{kind:d}", kind)


def _binds(call: ast.Call, signature: Signature) -> bool:
    """Return True if a function of that signature takes the call, as far as its arguments are
    known: with `*x` or `**x` others may follow."""
    known = [each for each in call.args if not isinstance(each, ast.Starred)]
    keywords = {each.arg: None for each in call.keywords if each.arg}
    is_whole = len(known) == len(call.args) and len(keywords) == len(call.keywords)
    try:
        (signature.bind if is_whole else signature.bind_partial)(*known, **keywords)
    except TypeError:
        return False
    return True
