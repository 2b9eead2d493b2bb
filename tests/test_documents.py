"""Documents name what exists: commands, options, modules, make's targets, rooms and figures."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from typer.main import get_command

from edge_agent.link.failover_policy import State, Trigger
from picospec.known_clients import read_clients
from picospec.main import app
from tests.sources import FILES, ROOMS
from verifier.options import SETTINGS

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "docs/commands.md"}
)
REFERENCE: Final = runpy.run_path(str(ROOT / "scripts/reference.py"))
COMMANDS: Final = {
    name.removeprefix("picospec "): {option for each in command.params for option in each.opts}
    for name, command in REFERENCE["commands"](get_command(app))
}
MAKEFILE: Final = (ROOT / "Makefile").read_text("utf-8")
TEXTS: Final = {page.name: " ".join(page.read_text("utf-8").split()) for page in PAGES}
FIGURES: Final = {
    "requests beside the plugin": r"(0\.\d+ to \d\.\d+) of vLLM's (?:own )?speed",
    "drafts at random": r"(0\.\d+ to \d\.\d+) times the server's speed",
    "the first token": r"first token(?: came)? (\d+ %) later",
    "bytes": r"\b(\d to 1\d) (?:bytes )?a token",
}
"""Patterns of figures that several pages have: the same number wherever it stands."""
COUNTS: Final = {
    "arms": len(re.findall(r"[^ ,]+", re.search(r"BENCH_ARMS := (.*)", MAKEFILE)[1])),  # type: ignore[index]
    "clients": len(read_clients()),
    "states": len(State),
    "triggers": len(Trigger),
}
NUMBERS: Final = {4: "four", 5: "five", 8: "eight", 9: "nine", 10: "ten", 11: "eleven"}
PRODUCT: Final = ("edge_agent", "gateway", "local_models", "picospec", "verifier")
OLLAMAS: Final = {"list", "ps", "pull", "serve", "version"}
ENGINES: Final = {name for names in SETTINGS.values() for name in names} | {"--exact"}


def code(page: Path) -> list[str]:
    """Return what a page shows as code, a line or a span each, joined where a line goes on."""
    text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [*lines, *(" ".join(span.split()) for span in spans)]


def test_prose_reads_the_texts_of_code_and_no_docstring() -> None:
    prose, long = runpy.run_path(str(ROOT / "scripts/prose.py")), "word " * 23
    sources = {
        f'fail("{long}")': 1,
        f'fail(f"{long}{{n:.2f}}")': 1,
        f'"""{long}"""': 0,
        'fail(f"it took {s:.2f} s")': 0,
    }

    for source, count in sources.items():
        assert len(list(prose["faults"](prose["messages"](source)))) == count


def test_there_are_commands_to_check() -> None:
    assert sum("picospec " in each for page in PAGES for each in code(page)) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_a_page_shows(page: Path) -> None:
    wrong = []
    for line in code(page):
        for words in re.findall(r"(?<![\w/.@=-])(?<!-n )picospec ([a-z][^|;&()]*)", line):
            first, *rest = words.split(" -- ")[0].split()
            pair = f"{first} {rest[0]}" if rest else first
            name = pair if pair in COMMANDS else first
            groups = {each.split()[0] for each in COMMANDS if " " in each}
            if name not in COMMANDS and first not in OLLAMAS and (first not in groups or rest):
                wrong.append(words)
            known = COMMANDS.get(name, set()) | {"--help"}
            if name in ("up", "verifier"):
                known |= ENGINES
            for option in re.findall(r"(?<!\S)--?[a-z][\w.-]*", " ".join(rest)):
                if option not in known and not re.match(
                    r"--(llama|vllm|speculation)\.", option
                ):
                    wrong.append(f"{words}: {option}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_targets_of_make_and_modules_that_exist(page: Path) -> None:
    targets = {
        target for line in code(page) for target in re.findall(r"^make ([a-z0-9-]+)", line)
    }
    modules = {
        each
        for line in code(page)
        for each in re.findall(r"python3? (?:-P )?-m ([\w.]+)", line)
    }

    assert {
        each for each in targets if not re.search(rf"^{each}(?: \S+)*:", MAKEFILE, re.M)
    } == set()
    assert {each for each in modules - {"pip"} if find_spec(each) is None} == set()


@pytest.mark.parametrize("pattern", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_the_same_on_all_pages(pattern: str) -> None:
    shown = {name: set(re.findall(pattern, text)) for name, text in TEXTS.items()}

    assert len(set().union(*shown.values())) <= 1, shown


@pytest.mark.parametrize("name", COUNTS)
def test_a_number_in_words_is_that_of_the_code(name: str) -> None:
    words = "|".join(NUMBERS.values())
    shown = re.findall(rf"\b({words}) {name}\b", " ".join([MAKEFILE, *TEXTS.values()]))

    assert set(shown) == {NUMBERS[COUNTS[name]]}


def test_texts_for_users_of_a_wheel_name_nothing_that_only_a_clone_has() -> None:
    prose = runpy.run_path(str(ROOT / "scripts/prose.py"))
    targets = "|".join(re.findall(r"^([a-z][a-z0-9-]+)(?: \S+)*:(?!=)", MAKEFILE, re.M))
    wrong = re.compile(rf"`make (?:{targets})\b|pip install '?picospec\b")
    files = [each for room in PRODUCT for each in (ROOT / room).rglob("*.py")]
    texts = {text for each in files for _, text in prose["messages"](each.read_text("utf-8"))}

    assert {each for each in texts if wrong.search(each)} == set()


def test_a_mechanism_costs_the_lines_that_decisions_says() -> None:
    table = (ROOT / "docs/decisions.md").read_text("utf-8").partition("## Structure")[0]
    wrong, folder = [], Path()
    for names, count in re.findall(r"^\|[^|]*\| (`[^|]*) \| (\d+|-) \|", table, re.M):
        lines = 0
        for name in re.findall(r"`([^`]+)`", names):
            file = Path(name) if "/" in name else folder / name
            code = re.sub(r'""".*?"""', "", (ROOT / file).read_text("utf-8"), flags=re.DOTALL)
            lines += len(re.findall(r"^\s*[^\s#]", code, re.M))
            folder = file.parent
        wrong += [f"{names}: {lines}"] * (count != "-" and not 0.8 < lines / int(count) < 1.25)

    assert wrong == []


def test_models_names_the_sibling_of_each_family() -> None:
    catalogue = tomllib.loads((ROOT / "local_models/catalogue.toml").read_text("utf-8"))
    siblings = {each["drafts"][0] for each in catalogue["families"].values()}
    names = {re.sub(r".*/|-Instruct|-GGUF.*", "", each).replace("-", " ") for each in siblings}

    page = TEXTS["models.md"].casefold()
    assert {each for each in names if f"sibling {each}".casefold() not in page} == set()


# The page on the architecture names rooms, files and imports that exist.

ARCHITECTURE: Final = (ROOT / "docs/architecture.md").read_text("utf-8")


def test_every_room_is_named() -> None:
    places = ARCHITECTURE.partition("## Where things live")[2].partition("## The walk")[0]
    named = re.findall(r"\w+", " ".join(re.findall(r"`[^`]*`", places)))

    rooms = {path.parent.name for path in FILES if path.name == "__init__.py"}

    assert rooms
    assert rooms <= set(named), rooms - set(named)


def test_every_file_that_it_names_exists() -> None:
    named = re.findall(r"`([a-z_/]+\.py)`", ARCHITECTURE)

    missing = [name for name in named if not any(str(f).endswith(f"/{name}") for f in FILES)]

    assert named
    assert not missing


def test_each_arrow_of_the_walk_is_an_import() -> None:
    wrong, folder, count = [], Path(), 0
    walk = ARCHITECTURE.partition("## The walk")[2].partition("## Where a")[0]
    for chain in re.findall(r"`[a-z_/0-9]+\.py`(?: → `[a-z_/0-9]+\.py`)+", walk):
        before = ""
        for name in re.findall(r"`([^`]+)`", chain):
            file = folder / name if (ROOT / folder / name).is_file() else Path(name)
            parent, leaf = ".".join(file.parent.parts), file.stem
            used = rf"from {parent}(\.{leaf} import|\b import .*\b{leaf}\b)"
            wrong += [chain] if before and not re.search(used, before) else []
            count, folder, before = count + 1, file.parent, (ROOT / file).read_text()

    assert count > 20
    assert wrong == []


def test_the_diagram_has_the_layers_of_the_import_rules() -> None:
    svg = (ROOT / "docs" / "architecture.svg").read_text()
    rows = dict[int, set[str]]()
    for y, room in re.findall(r'y="(\d+)"><tspan class="head">(\w+)/', svg):
        rows.setdefault(int(y), set()).add(room)

    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [set(re.findall(r"\w+", each)) for each in rules["contracts"][0]["layers"]]
    assert [rows[y] for y in sorted(rows)] == layers
    assert set.union(*layers) == set(ROOMS)
