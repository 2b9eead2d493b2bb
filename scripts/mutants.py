"""`make mutants` breaks the product on purpose, one place at a time, and counts what tests see.

COUNT places are drawn by SEED from the rooms of the product, all places alike. Each is broken
in a checkout of its own, and the quick tests that reach its lines run there, or its file if its
lines run at the import alone; which these are is seen in one run of all quick tests. If they
pass, all quick tests of its room run, some of which start other processes. A mutant is killed
if a test fails twice with it and passes without it. The diffs of those that survive name rules
without a test, and code that changes nothing.

What runs in vLLM alone is not drawn: its suite takes half an hour.

`--keep FILE` writes what was drawn to a file, as texts of lines, and `--kept FILE` tries those
again. So the same breaks can be tried before and after tests are deleted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from coverage import CoverageData

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("speculation", "local_models", "verifier", "edge_agent", "gateway", "picospec")
LEFT_OUT: Final = "vllm_target"
LIMIT_S: Final = 400
"""A loop without an end counts as killed when the tests have run for so long."""

HANG: Final = "a hang"
TIMED_OUT: Final = 124  # as `timeout` exits

FEW: Final = 60
"""Fewer tests run in one process: others would take longer to start."""

TWINS: Final = (
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.FloorDiv),
    (ast.And, ast.Or),
)
OTHER: Final[dict[type[ast.AST], type[ast.AST]]] = {
    old: new for one, two in TWINS for old, new in ((one, two), (two, one))
}


class Mutant(NamedTuple):
    """Bytes `start` to `end` of a file, and the text that takes their place."""

    path: Path
    start: int
    end: int
    text: str

    @property
    def lines(self) -> range:
        """The numbers of the lines that the change is in."""
        source = (ROOT / self.path).read_bytes()
        first, last = (source[:at].count(b"\n") + 1 for at in (self.start, self.end))
        return range(first, last + 1)

    @property
    def room(self) -> str:
        """The folder of its room's tests."""
        return f"tests/{self.path.parts[0]}"

    def diff(self) -> str:
        """Return the change as a diff."""
        old, new = (ROOT / self.path).read_text().splitlines(), self.broken().splitlines()
        name = str(self.path)
        return "\n".join(difflib.unified_diff(old, new, name, name, n=0, lineterm=""))

    def broken(self) -> str:
        """Return the whole file with the change in it."""
        source = (ROOT / self.path).read_bytes()
        return (source[: self.start] + self.text.encode() + source[self.end :]).decode()


def drawn(count: int, seed: int) -> list[Mutant]:
    """Draw mutants of the whole product. The same files and seed give the same mutants."""
    files = [
        path.relative_to(ROOT)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if LEFT_OUT not in path.parts
    ]
    places = [mutant for path in files for mutant in mutants(path)]
    return random.Random(seed).sample(places, count)


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield each mutant of a file."""
    source = (ROOT / path).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for node in code(ast.parse(source)):
        if (new := changed(node)) is not None:
            start = lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
            end = lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            text = ast.unparse(new)
            yield Mutant(path, start, end, f"({text})" if isinstance(new, ast.expr) else text)


def code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and what is below it, but for annotations and the insides of f-strings."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(
            node, ast.JoinedStr
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from code(child)


def changed(node: ast.AST) -> ast.AST | None:
    """Return what takes the place of a node, or None where nothing does."""
    other = copy.copy(node)
    match other:
        case ast.Compare(ops=[operator]) if type(operator) in OTHER:
            other.ops = [OTHER[type(operator)]()]  # type: ignore[list-item]
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(other.op) in OTHER:
            other.op = OTHER[type(other.op)]()  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.Not()):
            return other.operand
        case ast.Constant(value=bool()):
            other.value = not other.value
        case ast.Constant(value=int() | float()):
            other.value += 1  # type: ignore[operator]
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise():
            return ast.Pass()
        case _:
            return None
    return other


class Checkout:
    """A copy of the committed tree, in which tests run."""

    def __init__(self, folder: Path) -> None:
        """Make the copy, or bring an earlier one up to date."""
        self.folder = folder
        if not folder.exists():
            subprocess.run(
                ["git", "worktree", "add", "-f", "--detach", folder], cwd=ROOT, check=True
            )
            (folder / ".venv").symlink_to(ROOT / ".venv")
        subprocess.run(["git", "checkout", "-qf", commit()], cwd=folder, check=True)
        seen = folder / f".coverage.{commit()}"
        if not seen.exists():
            self.run("--cov=. --cov-context=test --cov-report=")
            (folder / ".coverage").rename(seen)
        self.seen = CoverageData(str(seen))
        self.seen.read()

    def killer(self, mutant: Mutant) -> str | None:
        """Return the test that fails for this mutant, or None if it survives."""
        file = self.folder / mutant.path
        whole = file.read_bytes()
        file.write_text(mutant.broken())
        try:
            failed = self.failed(self.reaching(mutant)) or self.failed([mutant.room])
            if failed is None or failed == HANG:
                return failed
            again = self.failed([failed])
        finally:
            file.write_bytes(whole)
        return failed if again and not self.failed([failed]) else None

    def reaching(self, mutant: Mutant) -> Sequence[str]:
        """Return the tests whose own process runs the lines of a mutant, or else its file."""
        lines = self.seen.contexts_by_lineno(str(mutant.path))
        reached = [name for line in mutant.lines for name in lines.get(line, ()) if name]
        names = reached or [name for each in lines.values() for name in each if name]
        return sorted({name.rpartition("|")[0] for name in names})

    def failed(self, tests: Sequence[str]) -> str | None:
        """Run tests, and return the first that fails, the first of all if it has no name, or
        HANG; None if all pass or there are none."""
        if not tests:
            return None
        names = self.folder / "build" / "tests.txt"
        names.parent.mkdir(exist_ok=True)
        names.write_text("\n".join(tests))
        few = "-n 0" if len(tests) < FEW and "::" in tests[0] else ""
        run = self.run(f"-x -q {few} @{names}", "timeout", "-k5", str(LIMIT_S))
        if run.returncode == TIMED_OUT:
            return HANG
        match = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", run.stdout, re.MULTILINE)
        return match[1] if match else tests[0] if run.returncode else None

    def run(self, arguments: str, *under: str) -> subprocess.CompletedProcess[str]:
        """Run the quick tests with these arguments of pytest, under another command."""
        make = ["make", "-s", "-o", ".venv/.ready-dev", "test-quick", f"ARGS={arguments}"]
        return subprocess.run(
            [*under, *make],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )


def keep(file: Path, found: Sequence[Mutant]) -> None:
    """Write mutants as the lines that they change, without those whose lines stand twice."""
    entries = []
    for mutant in found:
        source, broken = (ROOT / mutant.path).read_text(), mutant.broken()
        first, last = mutant.lines[0] - 1, mutant.lines[-1]
        old = "".join(source.splitlines(keepends=True)[first:last])
        after = len(source.splitlines()) - last
        new = "".join(
            broken.splitlines(keepends=True)[first : len(broken.splitlines()) - after]
        )
        if source.count(old) == 1:
            fields = {"file": str(mutant.path), "old": old, "new": new}
            lines = [f"{name} = {json.dumps(text)}" for name, text in fields.items()]
            entries.append("\n".join(["[[mutant]]", *lines]))
    file.write_text("\n\n".join(entries) + "\n")


def kept(file: Path) -> list[Mutant]:
    """Return the mutants of a file that `keep` wrote. Exits if a line is no longer there."""
    found = []
    for each in tomllib.loads(file.read_text())["mutant"]:
        source = (ROOT / each["file"]).read_bytes()
        if source.count(old := each["old"].encode()) != 1:
            sys.exit(f"{each['file']} has these lines not once:\n{each['old']}")
        start = source.index(old)
        found.append(Mutant(Path(each["file"]), start, start + len(old), each["new"]))
    return found


def commit() -> str:
    """Return the commit of this checkout."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    """Draw mutants, try each, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what is drawn, only")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="try what was written")
    options = parser.parse_args()
    found = kept(options.kept) if options.kept else drawn(options.count, options.seed)
    if options.keep:
        return keep(options.keep, found)
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *ROOMS], cwd=ROOT).returncode:
        sys.exit("The product has changes that are not committed; mutants are of a commit.")
    checkout = Checkout(options.folder)
    killed = 0
    for number, mutant in enumerate(found, 1):
        killer = checkout.killer(mutant)
        killed += killer is not None
        outcome = f"killed by {killer}" if killer else "SURVIVES"
        sys.stdout.write(f"{number}: {outcome}\n{mutant.diff()}\n\n")
        sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(found)} killed at {commit()}\n")


if __name__ == "__main__":
    main()
