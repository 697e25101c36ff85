"""Prometheus metrics of one gateway, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """What the gateway counts. Labels hold no text of a request."""

    def __init__(self, admitted: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "vizwiz_gateway_requests",
            "Requests for answers, by outcome: answered, or the code of the error.",
            ["outcome"],
            registry=self._registry,
        )
        self.answers = Counter(
            "vizwiz_gateway_answers",
            "Answers, by whether the model declined: the photo probably cannot answer the question.",
            ["declined"],
            registry=self._registry,
        )
        for declined in ("true", "false"):  # present from the start, so that rates have no gap
            self.answers.labels(declined)
        self.upload = self._histogram("upload", "from the request's headers to the end of its body")
        self.queue = self._histogram("queue", "waiting for a thread that decodes photos")
        self.decode = self._histogram("decode", "decoding and resizing the photo")
        self.triton = self._histogram("triton", "tokenising and asking Triton, retries included")
        gauge = Gauge(
            "vizwiz_gateway_admitted",
            "Requests admitted now, from upload to the end of the call to Triton.",
            registry=self._registry,
        )
        gauge.set_function(admitted)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, stage: str, text: str) -> Histogram:
        name = f"vizwiz_gateway_{stage}_seconds"
        return Histogram(name, f"Seconds {text}.", buckets=_BUCKETS, registry=self._registry)
