"""`missing.py LOCK PYPROJECT` prints the entries of a lock file that this environment lacks.

It is for an image whose own packages must stay, such as vLLM's: an entry is printed if its
package is not installed, or in a version that pyproject.toml does not admit.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # any environment with pip has it


def is_missing(name: str, admitted: dict[str, Requirement]) -> bool:
    """Return whether a package must come from the lock file. admitted: by their names."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return True
    return name in admitted and not admitted[name].specifier.contains(
        installed, prereleases=True
    )


def missing(lock: str, pyproject: str) -> list[str]:
    """Return the entries, each with its hashes."""
    required = map(Requirement, tomllib.loads(pyproject)["project"]["dependencies"])
    admitted = {each.name.lower().replace("_", "-"): each for each in required}
    entries = re.findall(r"^([\w.-]+)(==(?:.*\\\n)*.*\n)", lock, re.MULTILINE)
    return [name + rest for name, rest in entries if is_missing(name, admitted)]


if __name__ == "__main__":
    lock, pyproject = (Path(name).read_text("utf-8") for name in sys.argv[1:])
    sys.stdout.write("".join(missing(lock, pyproject)))
