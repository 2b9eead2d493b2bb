"""Find what makes documents hard to read: long sentences, numbers like .98, and pet phrases.

`python scripts/prose.py FILE...` prints file, line and fault, and ends with 1 if there is any.
In Markdown it reads neither code, nor tables, nor links' addresses. In Python it reads the
strings of one line that are no docstrings. docs/commands.md has the help of each command.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_WORDS: Final = 22
"""In a sentence."""

FAULTS: Final = {
    r"(?<![\d\w])\.\d": "a number without its leading zero",
    r"\band says so\b|\bas \w+ has it\b|\bthose that\b": "a pet phrase",
}


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield the prose of a Markdown document by blocks, with the number of the first line."""
    block, begun, in_code = list[str](), 0, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        is_fence = line.lstrip().startswith("```")
        in_code ^= is_fence
        is_apart = in_code or is_fence or line.lstrip().startswith("|")
        is_prose = bool(line.strip()) and not is_apart
        if block and (not is_prose or re.match(r"\s*([-*#>]|\d+\.) ?", line)):
            yield begun, " ".join(block)
            block = []
        if is_prose:
            begun = begun if block else number
            block.append(re.sub(r"^\s*([-*#>]+|\d+\.) *", "", line).strip())


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Yield the strings of a Python file that users may see, with `x` for what is put in."""
    tree = ast.parse(source)
    hidden = set[ast.AST]()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant() as docstring):
                hidden.add(docstring)
            case ast.JoinedStr(values) if node not in hidden:  # a format is one, too
                hidden |= {part for value in values for part in ast.walk(value)}
                texts = [
                    each.value if isinstance(each, ast.Constant) else "x" for each in values
                ]
                yield node.lineno, "".join(map(str, texts))
            case ast.Constant(str(text)) if "\n" not in text and node not in hidden:
                yield node.lineno, text


def plain(text: str) -> str:
    """Remove code, links' addresses and pictures."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "x", text)


def faults(blocks: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the line and what is wrong."""
    for number, block in blocks:
        words = plain(block)
        for pattern, fault in FAULTS.items():
            if found := re.search(pattern, words):
                yield number, f"{fault}: {found[0]}"
        for sentence in re.split(r"(?<=[.:;?!])[\"*)]* (?=\W*[\w(])", words):
            count = len(sentence.split())
            if count > MOST_WORDS:
                yield number, f"a sentence of {count} words: {sentence[:60]}..."


def _blocks(file: Path) -> Iterator[tuple[int, str]]:
    text = file.read_text("utf-8")
    return messages(text) if file.suffix == ".py" else paragraphs(text)


def main(names: list[str]) -> int:
    """Print the faults of the files."""
    found = [
        f"{name}:{number}: {fault}"
        for name in names
        for number, fault in faults(_blocks(Path(name)))
    ]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
