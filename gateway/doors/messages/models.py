"""Models as Anthropic's API has them: what /v1/models answers to its clients."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from picospec.gateway.doors.answer import Json
from picospec.gateway.ports import Facts


def model_of(name: str, created: int, facts: Facts | None = None) -> Json:
    """Return a model. created: the Unix time, in seconds. facts: None of another service's."""
    limits = ("max_input_tokens", "max_tokens") if facts else ()
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "lifecycle": "active",
        **{limit: facts.context_tokens for limit in limits if facts},
    }


def page_of(models: Sequence[Json]) -> Json:
    """Return all models as the only page of a list."""
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]}
    return {"data": models, "has_more": False, **ends}
