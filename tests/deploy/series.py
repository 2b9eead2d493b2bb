"""The series that an edge and a verifier show, with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry

from edge_agent.metrics import EdgeMetrics
from gateway.metrics import Metrics
from gateway.tenant_limits import TenantMetrics
from verifier.metrics import VerifierMetrics

SCRAPED: Final = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""

ENDINGS: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
VLLMS: Final = ("vllm:kv_cache_usage_perc", "vllm:num_requests_waiting")
"""vLLM's own, in the place of ours."""


def shown() -> Mapping[str, frozenset[str]]:
    """The labels of each series that an edge or a verifier shows, by its name."""
    edge, verifier = CollectorRegistry(), CollectorRegistry()
    Metrics(edge)
    EdgeMetrics(edge)
    VerifierMetrics(verifier).follow("", float, int)
    TenantMetrics(verifier)
    series = {"up": SCRAPED, **dict.fromkeys(VLLMS, SCRAPED)}
    for registry in (edge, verifier):
        for collector in registry._collector_to_names:
            labels = SCRAPED.union(getattr(collector, "_labelnames", ()))
            for family in collector.collect():
                for ending in ENDINGS.get(family.type, ("",)):
                    more = {"le"} if ending == "_bucket" else set()
                    series[family.name + ending] = labels | more
    return series
