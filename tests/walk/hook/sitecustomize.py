"""Writes down which file of the product calls which, in each process that has this on its path.

Python imports `sitecustomize` when it starts. WALK_INTO names a folder, which gets one file for
each process, and WALK_ROOT the checkout. A line has the time in seconds, by the clock that all
processes share, the caller and the callee; a pair of files is written once in BUCKET_S. A call
counts where it begins a function, and not where a coroutine or a generator goes on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dis import opmap
from types import CodeType, FrameType
from typing import Final

BUCKET_S: Final = 0.02
ROOMS: Final = ("speculation/", "gateway/", "models/", "edge_agent/", "verifier/")
OUTSIDE: Final = "-"
"""Stands for the caller of a function that no function of the product calls."""

_BEGINNING: Final = bytes((opmap["RESUME"], 0))
_into, _root = os.environ.get("WALK_INTO", ""), os.environ.get("WALK_ROOT", "")
_files: dict[CodeType, str] = {}
_seen: set[tuple[int, str, str]] = set()


def file_of(code: CodeType) -> str:
    """Return the path of a function's file in the checkout, "" if it is not the product's."""
    known = _files.get(code)
    if known is None:
        below = code.co_filename.removeprefix(f"{_root}/").removeprefix("picospec/")
        known = _files[code] = below if below.startswith(ROOMS) else ""
    return known


def note(frame: FrameType, event: str, _: object) -> None:
    code, at = frame.f_code, frame.f_lasti
    if event != "call" or not file_of(code) or code.co_code[at : at + 2] != _BEGINNING:
        return
    above = frame.f_back
    while above is not None and not file_of(above.f_code):
        above = above.f_back
    caller = file_of(above.f_code) if above is not None else OUTSIDE
    seen = (int(time.monotonic() / BUCKET_S), caller, file_of(code))
    if seen not in _seen:
        _seen.add(seen)
        with open(f"{_into}/{os.getpid()}", "a") as lines:
            lines.write(f"{seen[0] * BUCKET_S:.2f} {caller} {seen[2]}\n")


if _into:
    threading.setprofile(note)
    sys.setprofile(note)
