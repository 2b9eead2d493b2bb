"""A task of inspect: `inspect eval capitals.py --model MODEL`."""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}


@task
def capitals() -> Task:
    asked = "What is the capital of {}? Answer in one word."
    samples = [Sample(asked.format(land), target=name) for land, name in CAPITALS.items()]
    return Task(dataset=samples, solver=generate(), scorer=includes())
