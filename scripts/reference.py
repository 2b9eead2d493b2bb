"""`make reference` writes settings, metrics, commands, bounds and deadlines into docs/.

The meaning of a setting or a constant is the docstring below it, a metric's is the help text in
/metrics, and a command's is that of `--help`.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.hosting.settings import VARIABLES
from gateway.metrics import Metrics
from gateway.tenant_limits import TenantMetrics
from picospec import ROOMS
from picospec.main import Forwarded, app
from verifier.metrics import VerifierMetrics
from verifier.settings import VerifierSettings

DOCS: Final = Path(__file__).parents[1] / "docs"

SETTINGS: Final = """# Settings

<!-- `make reference` writes this page from the classes. -->

From strongest to weakest, a setting comes from the command line, the environment, a TOML file,
or its default. The file is `edge.toml` or `verifier.toml` in `~/.config/picospec`, or what
`--config` names. `configs/` has both with their defaults, and `picospec config show` prints
each value in force with its source.

The variable of a setting is `PICOSPEC_EDGE__NAME` or `PICOSPEC_VERIFIER__NAME`, in capitals. Of
`TABLE.NAME` it is `PICOSPEC_EDGE__TABLE__NAME`. Lists and tables are JSON there, as in
`PICOSPEC_EDGE__VERIFIER_URLS='["https://gpu:9000"]'`. `LIST[].NAME` is in each table `[[LIST]]`
of the file; a variable sets the whole list. A variable with one of these beginnings that sets
nothing is an error, and so is one whose name is nearly right. The verifier takes each setting
as an option, too: `--llama.slots 4`.
"""

METRICS: Final = """# Metrics

<!-- `make reference` writes this page from the classes. -->

Both ends show these at `/metrics`, in Prometheus' text format, and the usual `process_...` of
Python. [What to watch](operations.md#what-to-watch) says which answer a question. Names, labels
and units are vLLM's where vLLM has the same metric, behind the prefix `picospec:`. A histogram
`NAME` has the series `NAME_bucket`, `NAME_sum` and `NAME_count`. A verifier in vLLM shows
vLLM's own metrics beside these.

`route` is `answer` for requests that ask for one, and else `page`, `probe` or `other`. How many
times as fast an edge is as the target alone: `edge_alone_seconds_total` over
`edge_answering_seconds_total`; their difference is the time that users were spared.
"""

COMMANDS: Final = """# Commands

<!-- `make reference` writes this page from the commands. -->

`picospec COMMAND --help` shows the same. For users of Ollama there are also `pull`, `list`,
`ps`, `serve` and `version`: they are `models pull`, `models list`, `status`, `up` and
`--version`.
"""

LIMITS: Final = """# What is bounded

<!-- `make reference` writes this page from the code. -->

Nothing that a client, an edge or a verifier sends may grow without a bound. Each row is a
constant or a setting, with its value or default. [Deadlines](deadlines.md) has the bounds on
time, and [the protocol](protocol.md#6-faults-and-limits) those of a session.
"""

DEADLINES: Final = """# Deadlines

<!-- `make reference` writes this page from the code. -->

Every wait has a limit. Each row is a constant or a setting, with its value or default. [The
protocol](protocol.md#6-faults-and-limits) has those of a session.
[Operations](operations.md) has [the watchdog](operations.md#the-watchdog), [what happens at a
stop](operations.md#when-it-stops) and [silent connections](operations.md#silent-connections).
"""

BOUNDS: Final[Mapping[str, Mapping[str, str]]] = {
    "Connections and keys": {
        "gateway.hosting.limits": "MAX_CONNECTIONS RESERVED MAX_DESCRIPTORS MAX_ACCEPTED",
        "gateway.tenants": "KEPT_PART",
        "gateway.keys": "MAX_FILE_BYTES",
        "gateway.log_limits": "EVERY_S MAX_CHARACTERS",
    },
    "A request": {
        "gateway.request_body": "MAX_BODY_BYTES",
        "gateway.endpoints.bodies": "MIN_LIMIT_BYTES BYTES_PER_TOKEN",
        "gateway.json_bounds": "MAX_CONTAINERS MAX_STRINGS MAX_VALUES SMALL_BYTES",
        "gateway.endpoints.parameters": "MAX_UNKNOWN MAX_BIASES MAX_CLIENT_STOP_TOKENS"
        " MAX_SALT",
        "gateway.endpoints.tools": "MAX_TOOLS",
        "gateway.json_schemas": "MAX_BYTES",
        "gateway.request_context": "MAX_HELD_BYTES",
        "gateway.endpoints.services": "MAX_WAITING",
        "gateway.prompt_reader": "MAX_RUNNING MAX_WAITING BYTES_PER_TOKEN",
        "local_models.compiler": "MAX_WAITING",
        "local_models.renderer": "MEMORY_BYTES",
    },
    "An answer": {
        "gateway.endpoints.generation": "MAX_LOGPROBS",
        "gateway.endpoints.completions": "MAX_SCORED MAX_ECHOED",
        "gateway.endpoints.response_store": "MAX_RESPONSES MAX_BYTES MAX_ALL_BYTES MAX_RUNNING",
        "gateway.endpoints.recording": "MAX_EVENTS_BYTES",
        "edge_agent.proxy": "MAX_BYTES HELD_BYTES",
    },
    "Between the ends": {
        "verifier.sessions.session": "MAX_UNREAD_BYTES PUSH_S",
        "verifier.sessions.multiplexed_stream": "MAX_UNSENT_BYTES",
        "verifier.sessions.admission": "MIN_UPLOADS",
        "edge_agent.link.uploads": "MAX_UNREAD_BYTES",
        "edge_agent.link.connection": "MAX_ANSWER_BYTES",
        "edge_agent.served": "MAX_MODELS",
        "local_models.tokenizer_cache": "MAX_KEPT",
        "edge_agent.draft.open_tokenizers": "MAX_OPEN_BYTES",
    },
}

WAITS: Final[Mapping[str, Mapping[str, str]]] = {
    "Clients": {
        "gateway.hosting.http1": "REQUEST_S",
        "gateway.hosting.idle_connections": "FIRST_S FIRST_CROWDED_S",
        "gateway.request_body": "PATIENCE_S MIN_BYTES_PER_S LINGER_S LINGER_BYTES",
        "gateway.http": "UNREAD_S",
        "gateway.hosting.server": "PING_S PONG_S",
        "edge_agent.__main__": "IDLE_S",
        "gateway.prompt_reader": "READ_TIMEOUT_S",
        "local_models.renderer": "CPU_S ANSWER_TIMEOUT_S",
        "local_models.checker": "ANSWER_TIMEOUT_S",
        "gateway.endpoints.response_store": "MAX_AGE_S",
        "gateway.endpoints.background": "MAX_RUN_S CANCEL_S ASKED_S",
    },
    "An answer at the edge": {
        "edge_agent.link.connection": "CONNECT_TIMEOUT_S REQUEST_TIMEOUT_S",
        "edge_agent.link.posts": "PAUSES_S",
        "edge_agent.link.verifier": "CHECK_TIMEOUT_S TOKENIZER_TIMEOUT_S ANSWER_TIMEOUT_S",
        "edge_agent.link.failover_policy": "RESPONSE_TIMEOUT_S OPEN_TIMEOUT_S",
        "edge": "failover_deadline_s",
        "edge_agent.draft.llama": "PASS_TIMEOUT_S",
        "local_models.tokenizer_cache": "TRIAL_S",
        "edge_agent.fallback": "SERVER_S",
        "edge_agent.proxy": "HEAD_S MAX_S",
    },
    "A session at the verifier": {
        "verifier": "sessions.first_token_timeout_s sessions.idle_timeout_s"
        " sessions.replacement_timeout_s sessions.max_age_s pass_timeout_s",
    },
    "The processes": {
        "verifier": "load_timeout_s drain_timeout_s stop_timeout_s",
        "edge_agent.__main__": "GRACE_S",
        "edge_agent.draft.llama": "CLOSE_S",
    },
}


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    kind: str
    default: str
    meaning: str

    @property
    def row(self) -> str:
        cells = (f"`{self.name}`", self.kind, self.default, self.meaning)
        return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |"


def settings_of(kind: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield each field of settings and of the tables in them."""
    schema, documentation = kind.model_json_schema(), docstrings(kind)
    for name, field in kind.model_fields.items():
        if name in getattr(kind, "secrets", {}):
            continue
        if table := next(tables(field.annotation), None):
            several = "[]" * (schema["properties"][name].get("type") == "array")
            yield from settings_of(table, f"{prefix}{name}{several}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "none" if default is None else f"`{json.dumps(default, default=str)}`"
        if field.is_required():
            shown = "needed"
        kinds = kind_of(schema["properties"][name])
        yield Setting(f"{prefix}{name}", kinds, shown, documentation.get(name, ""))


def tables(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the table that a field is, or may be."""
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield each


def kind_of(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema takes, in words."""
    if choices := schema.get("enum"):
        return ", ".join(f"`{each}`" for each in choices)
    if "anyOf" in schema:
        return " or ".join(
            kind_of(each) for each in schema["anyOf"] if each != {"type": "null"}
        )
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}"
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    names |= {"object": "table", "string": schema.get("format", "text")}
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    bounds = [
        f"{'over' if 'exclusiveMinimum' in schema else 'from'} {least}" * (least is not None),
        f"to {schema['maximum']}" if "maximum" in schema else "",
    ]
    return " ".join(filter(None, (names[schema["type"]], *bounds)))


def docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field of a class and of those that it inherits from."""
    by_name: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, BaseModel) and each.__module__.partition(".")[0] in ROOMS:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            by_name |= dict(_pairs(body.body))  # type: ignore[attr-defined]
    return by_name


def _pairs(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for pair in pairwise(body):
        match pair:
            case (
                ast.AnnAssign(target=ast.Name(name)) | ast.Assign(targets=[ast.Name(name)]),
                ast.Expr(ast.Constant(str(text))),
            ):
                yield name, " ".join(text.split())


def settings_page() -> str:
    """Return the page of settings and variables."""
    edge, verifier = tuple(settings_of(EdgeSettings)), tuple(settings_of(VerifierSettings))
    both = [each for each in edge if each in verifier]
    head = ("setting", "type", "default", "meaning")
    parts = [
        ("Of both", head, [each.row for each in both]),
        ("Of the edge", head, [each.row for each in edge if each not in both]),
        ("Of the verifier", head, [each.row for each in verifier if each not in both]),
        ("Variables that are no setting's", ("variable", "meaning"), variables()),
    ]
    return SETTINGS + "".join(table(*part) for part in parts)


def variables() -> Iterator[str]:
    """Yield a row for each variable that is no field of settings."""
    for name, meaning in VARIABLES.items():
        yield f"| `{name}` | {meaning} |"


def table(title: str, head: Sequence[str], rows: Iterable[str]) -> str:
    """Return a chapter that is a table."""
    lines = (f"\n## {title}\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows)
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Return the page of metrics."""

    def of_both(registry: CollectorRegistry) -> None:
        Metrics(registry)
        TenantMetrics(registry)

    def of_verifier(registry: CollectorRegistry) -> None:
        VerifierMetrics(registry).follow("", float, int)

    common = list(metrics_of(of_both))
    parts = {
        "Of both": common,
        "Of the edge": metrics_of(EdgeMetrics),
        "Of the verifier": [row for row in metrics_of(of_verifier) if row not in common],
    }
    head = ("metric", "type", "labels", "meaning")
    return METRICS + "".join(table(title, head, rows) for title, rows in parts.items())


def metrics_of(register: Callable[[CollectorRegistry], object]) -> Iterator[str]:
    """Yield a row for each metric that is registered."""
    endings = {"counter": "_total", "info": "_info"}
    registry = CollectorRegistry()
    register(registry)
    for collector in registry._collector_to_names:
        if isinstance(collector, ProcessCollector):
            continue
        labels = getattr(collector, "_labelnames", ())
        for family in sorted(collector.collect(), key=lambda each: each.name):
            names = labels or next(({*s.labels} for s in family.samples if s.labels), ())
            if family.type == "histogram":
                names = labels
            shown = ", ".join(f"`{name}`" for name in sorted(names))
            name = family.name + endings.get(family.type, "")
            yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def commands_page() -> str:
    """Return the page of commands."""
    shown = commands(cast("TyperGroup", get_command(app)))
    return COMMANDS + "".join(f"\n## `{name}`\n\n{help_of(each)}\n" for name, each in shown)


def commands(group: TyperGroup, path: str = "picospec") -> Iterator[tuple[str, TyperCommand]]:
    """Yield each command that `--help` shows, by the words that call it."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path} {name}")
        elif isinstance(command, Forwarded):
            own = get_command(import_module(f"{command.module}.__main__").app)
            yield f"{path} {name}", cast("TyperCommand", own)
        else:
            yield f"{path} {name}", cast("TyperCommand", command)


def help_of(command: TyperCommand) -> str:
    """Return what a command does, and a line for each argument and option."""
    lines = [inspect.cleandoc(command.help or "").split("\f")[0].strip(), ""]
    for each in command.params:
        words = ", ".join(each.opts) if each.param_type_name == "option" else each.name
        if each.name in ("help", "install_completion", "show_completion"):
            continue
        meaning = (getattr(each, "help", None) or "").replace("\\[", "[")
        default = each.default
        if default not in (None, False, "", (), []) and not callable(default):
            meaning += f" Default: `{default}`."
        lines.append(f"- `{words}`" + f": {meaning.strip()}" * bool(meaning))
    return "\n".join(lines).rstrip()


def bounds_page(text: str, chapters: Mapping[str, Mapping[str, str]]) -> str:
    """Return a page of constants and settings, by chapter, module and name."""
    head = ("value", "meaning", "name")
    return text + "".join(
        table(title, head, (row for item in chapter.items() for row in bounds_of(*item)))
        for title, chapter in chapters.items()
    )


def bounds_of(owner: str, names: str) -> Iterator[str]:
    """Yield a row for each name of a module, or for each setting of "edge" or "verifier"."""
    if kind := {"edge": EdgeSettings, "verifier": VerifierSettings}.get(owner):
        settings = {each.name: each for each in settings_of(kind)}
        for name in names.split():
            value = settings[name].default.strip("`").removesuffix(".0")
            yield f"| {value}{' s' * (value != 'none')} | {settings[name].meaning} | `{name}` |"
        return
    module = import_module(owner)
    documentation = dict(_pairs(ast.parse(inspect.getsource(module)).body))
    for name in names.split():
        shown = amount(name, getattr(module, name))
        yield f"| {shown} | {documentation[name]} | `{owner}.{name}` |"


def amount(name: str, value: float | tuple[float, ...]) -> str:
    """Return the value of a constant, with the unit that its name tells."""
    if isinstance(value, tuple):
        return f"{', '.join(f'{each:g}' for each in value)} s"
    if name.endswith("_BYTES"):
        unit, size = ("MiB", 1 << 20) if value >= 1 << 20 else ("KiB", 1 << 10)
        return f"{value / size:,g} {unit}"
    endings = {"_BYTES_PER_S": " bytes/s", "_S": " s"}
    return f"{value:,.12g}{next((endings[end] for end in endings if name.endswith(end)), '')}"


PAGES: Final = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "commands.md": commands_page,
    "limits.md": partial(bounds_page, LIMITS, BOUNDS),
    "deadlines.md": partial(bounds_page, DEADLINES, WAITS),
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        sys.stdout.write(f"docs/{name}\n")
