"""The dashboard and the alert rules name only what the services show, in PromQL that parses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import promql_parser
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from tests.deploy.series import shown

DEPLOY: Final = Path(__file__).parents[2] / "deploy"


GRAFANAS: Final = {"$__rate_interval": "1m", "$verifier": "v", "$edge": "e"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(Strict):
    alert: Annotated[str, Field(pattern=r"Picospec[A-Za-z]+")]
    expr: str
    for_: Annotated[str, Field(pattern=r"\d+[smh]", alias="for")] = "0s"
    labels: dict[Literal["severity"], Literal["warning", "critical"]]
    annotations: dict[Literal["summary", "description"], str]


class Group(Strict):
    name: str
    rules: list[Rule]


class Rules(Strict):
    groups: list[Group]


def rules() -> list[Rule]:
    text = (DEPLOY / "prometheus" / "alerts.yaml").read_text("utf-8")
    return [rule for group in Rules(**yaml.safe_load(text)).groups for rule in group.rules]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana" / "picospec.json").read_text())
    return loaded


def queries() -> Iterator[str]:
    """Every PromQL expression, with Grafana's variables replaced."""
    yield from (rule.expr for rule in rules())
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression: str = target["expr"]
            for name, value in GRAFANAS.items():
                expression = expression.replace(name, value)
            yield expression


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """The series that a query names, with the labels that it selects them by."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {each.name for each in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouped_by(expression: str) -> set[str]:
    labels: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return labels


@pytest.mark.parametrize("expression", list(queries()))
def test_each_query_names_series_and_labels_that_exist(expression: str) -> None:
    series, named = shown(), selectors(expression)

    assert named
    for name, labels in named:
        assert name in series
        assert labels <= series[name]
    assert grouped_by(expression) <= frozenset().union(*(series[name] for name, _ in named))


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(picospec:requests_totl[5m])",
        'picospec:requests_total{state="500"}',
        "picospec:pass_seconds",
        "sum by (state) (picospec:requests_total)",
        "1",
    ],
)
def test_a_query_of_what_does_not_exist_is_noticed(wrong: str) -> None:
    with pytest.raises(AssertionError):
        test_each_query_names_series_and_labels_that_exist(wrong)


def test_the_dashboards_variables_are_looked_up_where_they_exist() -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric = variable["query"].removeprefix("label_values(").partition(",")[0]
            assert metric in shown()
            assert f"${variable['name']}" in GRAFANAS
