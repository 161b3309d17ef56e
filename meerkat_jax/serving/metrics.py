"""What is counted, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from meerkat_jax.inference.engine import Engine

TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds


class Metrics:
    """One registry, so that several servers may live in one process."""

    def __init__(self, engine: Engine):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "meerkat_requests", "Requests by HTTP status.", ["status"], registry=registry
        )
        self.answers = Counter(
            "meerkat_answers", "Answers by how they ended.", ["finish"], registry=registry
        )
        self.tokens = Counter(
            "meerkat_tokens", "Tokens read and written.", ["kind"], registry=registry
        )
        self.first = Histogram(
            "meerkat_first_token_seconds", "From a request to its first token.",
            buckets=TIMES, registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            "meerkat_answer_seconds", "From a request to the end of its answer.",
            buckets=TIMES, registry=registry,
        )  # fmt: skip
        gauges = {
            "meerkat_queue": ("Questions that wait for a row.", lambda: engine.queued),
            "meerkat_rows_busy": ("Rows in use.", lambda: engine.busy),
            "meerkat_rows": ("Rows.", lambda: engine.slots),
        }
        for name, (told, value) in gauges.items():
            Gauge(name, told, registry=registry).set_function(value)

    def response(self) -> Response:
        """All of it as text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
