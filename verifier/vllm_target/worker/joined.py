"""Joins our worker extension with an operator's: vLLM takes one class, by its name.

`conflicts.extension` makes that name: of both classes, with a colon for each dot.
"""

from __future__ import annotations

from functools import cache

from vllm.utils.import_utils import resolve_obj_by_qualname


@cache
def __getattr__(name: str) -> type:
    """Return the class that extends all classes of the name. A second worker in this process
    gets the same one: vLLM compares them. Raises ImportError or AttributeError for a class
    that is not there."""
    if "," not in name:
        raise AttributeError(name)
    classes = map(resolve_obj_by_qualname, name.replace(":", ".").split(","))
    return type("PicoWorkerExtension", tuple(classes), {})
