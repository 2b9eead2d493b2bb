"""Puts the patches of one place into vLLM's objects, and takes them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial, wraps
from importlib import import_module
from inspect import getattr_static, isclass
from operator import attrgetter
from typing import Any, Final

from verifier.vllm_target.patches import PATCHES, Patch, Place

_ABSENT: Final = object()
_ORIGINALS: Final = "picospec_stocks"
"""A module or class of vLLM's that has patches keeps its own attributes under this name."""


def apply(place: Place, **given: Any) -> Callable[[], None]:
    """Apply the patches of a place; return a function that undoes them. If vLLM lacks a target,
    this raises AttributeError, and applies none.

    given: the objects in which the paths `on` begin, and as `ours` the instance whose methods
    they get. Without any a second call does nothing.
    """
    with ExitStack() as undo:
        for patch in PATCHES:
            if patch.place == place:
                undo.callback(_put(patch, given))
        return undo.pop_all().close


def original(holder: Any, name: str) -> Any:
    """Return vLLM's own attribute of a module or class, whether it has a patch or not."""
    return vars(holder).get(_ORIGINALS, {}).get(name) or getattr(holder, name)


def _put(patch: Patch, objects: Mapping[str, Any]) -> Callable[[], None]:
    ours, holder, name = _ours(patch, objects), _object(patch, objects), patch.name
    own, known = getattr(holder, name, None), vars(holder).get(_ORIGINALS, {})
    if not objects and known.get(name, own) is not own:
        return lambda: None
    raw = getattr_static(holder, name, _ABSENT)
    if (raw is _ABSENT) != (patch.form == "added"):
        raise AttributeError(f"vLLM has {'no' if raw is _ABSENT else 'its own'} {patch.target}")
    before = {key: vars(holder).get(key, _ABSENT) for key in (name, _ORIGINALS)}
    setattr(holder, name, _made(patch, holder, raw, own, ours))
    if not objects:
        setattr(holder, _ORIGINALS, {**known, name: own})
    return partial(_restore, holder, before)


def _made(patch: Patch, holder: Any, raw: Any, own: Any, ours: Any) -> Any:
    """Return what takes an attribute's place. raw: the attribute as the holder keeps it."""
    if patch.form == "around":
        if isinstance(raw, property):
            return property(partial(ours, raw.fget))
        ours = _method(ours, own) if isclass(holder) else partial(ours, own)
    return staticmethod(ours) if isinstance(raw, staticmethod) else ours


def _method(ours: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def method(*args: Any, **kwargs: Any) -> Any:
        return ours(own, *args, **kwargs)

    return method


def _restore(holder: Any, before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if value is not _ABSENT:
            setattr(holder, name, value)
        elif name in vars(holder):
            delattr(holder, name)


def _object(patch: Patch, objects: Mapping[str, Any]) -> Any:
    """Return the object that gets a patch."""
    if patch.on:
        name, _, path = patch.on.partition(".")
        value = objects[name]
    else:
        module, _, path = patch.holder.partition(":")
        value = import_module(module)
    return attrgetter(path)(value) if path else value


def _ours(patch: Patch, objects: Mapping[str, Any]) -> Any:
    """Return what takes the target's place."""
    module, _, name = patch.by.partition(":")
    if "." in name:
        return getattr(objects["ours"], name.rpartition(".")[2])
    return getattr(import_module(f"{__package__}.{module}"), name)
