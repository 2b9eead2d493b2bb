"""`missing.py LOCK PYPROJECT` prints the entries of a lock file that this environment lacks.

It is for an image whose own packages must stay, such as vLLM's: an entry is printed if its
package is not installed, or in a version that pyproject.toml does not admit. What only an extra
asks for is left out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # any environment with pip has it

Requirements = dict[str, Requirement]
"""What is asked for, by the names in a lock file."""


def is_missing(name: str, admitted: Requirements) -> bool:
    """Return whether a package must come from the lock file."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return True
    return name in admitted and not admitted[name].specifier.contains(
        installed, prereleases=True
    )


def missing(lock: str, pyproject: str) -> list[str]:
    """Return the entries, each with its hashes."""
    project = tomllib.loads(pyproject)["project"]
    admitted = named(project["dependencies"])
    extras = project.get("optional-dependencies", {}).values()
    optional = named(chain(*extras)).keys() - admitted.keys()
    entries = re.findall(r"^([\w.-]+)(==(?:.*\\\n)*.*\n)", lock, re.MULTILINE)
    return [
        name + rest
        for name, rest in entries
        if name not in optional and is_missing(name, admitted)
    ]


def named(requirements: Iterable[str]) -> Requirements:
    """Read requirements."""
    parsed_requirements = map(Requirement, requirements)
    return {each.name.lower().replace("_", "-"): each for each in parsed_requirements}


if __name__ == "__main__":
    lock, pyproject = (Path(name).read_text("utf-8") for name in sys.argv[1:])
    sys.stdout.write("".join(missing(lock, pyproject)))
