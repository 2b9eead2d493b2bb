"""PicoSpec: a large cloud model answers faster, without changing one token of what it says.

This package is the command. The rooms beside it are packages of their own names; a process of
ours ends here if one of them would be imported from elsewhere.
"""

import os
from importlib.util import find_spec
from typing import Final

ROOMS: Final = ("edge_agent", "gateway", "local_models", "speculation", "verifier")


def check_rooms() -> None:
    """Raise ImportError, which names the intruder, if a room is not beside this package."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for room in ROOMS:
        spec = find_spec(room)
        place = os.path.realpath(spec.origin) if spec and spec.origin else "no file"
        if place != os.path.join(home, room, "__init__.py"):
            raise ImportError(
                f"PicoSpec's package {room} is in {home}, but Python finds {place} first:"
                " start in another folder, or take that one off PYTHONPATH"
            )


check_rooms()
