"""Writes down which file of the product calls which, in each process that has this on its path.

Python imports `sitecustomize` when it starts. WALK_INTO names a folder, which gets one file
for each process, and WALK_ROOT the checkout. Each function of the product is compiled with a
call of `note` at its beginning, so nothing else becomes slower. A line has the time in seconds,
by the clock that all processes share, the caller and the callee; a pair of files is written
once in BUCKET_S. A coroutine or a generator that goes on calls nothing.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import time
from importlib.machinery import SourceFileLoader
from types import CodeType, FrameType
from typing import Final

BUCKET_S: Final = 0.02
ROOMS: Final = ("speculation/", "gateway/", "local_models/", "edge_agent/", "verifier/")
OUTSIDE: Final = "-"
"""Stands for the caller of a function that no function of the product calls."""

NOTE: Final = "_walk_note"
_into, _root = os.environ.get("WALK_INTO", ""), os.environ.get("WALK_ROOT", "")
_files: dict[CodeType, str] = {}
_seen: set[tuple[int, str, str]] = set()
_stock = SourceFileLoader.get_code


def below_root(path: str) -> str:
    """Return the path in the checkout of a file of the product, and "" of any other."""
    below = path.removeprefix(f"{_root}/")
    return below if below.startswith(ROOMS) else ""


def file_of(frame: FrameType) -> str:
    code = frame.f_code
    if code not in _files:
        _files[code] = below_root(code.co_filename)
    return _files[code]


def note() -> None:
    """Write down that the function from which this is called was called."""
    callee = sys._getframe(1)
    above = callee.f_back
    while above is not None and not file_of(above):
        above = above.f_back
    caller = file_of(above) if above is not None else OUTSIDE
    seen = (int(time.monotonic() / BUCKET_S), caller, file_of(callee))
    if seen not in _seen:
        _seen.add(seen)
        with open(f"{_into}/{os.getpid()}", "a") as lines:
            lines.write(f"{seen[0] * BUCKET_S:.2f} {caller} {seen[2]}\n")


def noting(source: bytes) -> ast.Module:
    """Return the module with a call of `note` in each function, after its docstring."""
    module = ast.parse(source)
    for each in ast.walk(module):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            where = 0 if ast.get_docstring(each, clean=False) is None else 1
            each.body.insert(where, ast.copy_location(ast.Expr(_call()), each.body[0]))
        elif isinstance(each, ast.Lambda):
            both = ast.Tuple([_call(), each.body], ast.Load())
            last = ast.Subscript(both, ast.Constant(1), ast.Load())
            each.body = ast.copy_location(last, each.body)
    return ast.fix_missing_locations(module)


def _call() -> ast.Call:
    return ast.Call(ast.Name(NOTE, ast.Load()), [], [])


def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
    if not below_root(loader.path):
        return _stock(loader, name)
    return compile(noting(loader.get_data(loader.path)), loader.path, "exec")


if _into:
    setattr(builtins, NOTE, note)
    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
