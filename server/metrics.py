"""Our Prometheus series, `onebase_*`, beside vLLM's own in one registry.

Per-adapter series carry the exact version as label `adapter`, for at most `limit` versions; later ones are counted
as `other`. Who has a label keeps it as long as the process lives, so that `rate()` never sees a series jump.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TPOT = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1)


class Metrics:
    """Every series of ours; also the observer that the residency tells of loads and evictions."""

    def __init__(self, registry: CollectorRegistry, *, limit: int) -> None:
        self.registry = registry
        self._limit = limit
        self._labels: set[str] = set()
        adapter = ["adapter"]
        self.requests = Counter(
            "onebase_requests_total", "Finished generations", [*adapter, "reason"], registry=registry
        )
        self.tokens = Counter(
            "onebase_tokens_total", "Tokens processed", [*adapter, "kind"], registry=registry
        )
        self.ttft = Histogram(
            "onebase_ttft_seconds", "Arrival to first token", adapter, buckets=_SECONDS, registry=registry
        )
        self.tpot = Histogram(
            "onebase_tpot_seconds",
            "Time per output token after the first",
            adapter,
            buckets=_TPOT,
            registry=registry,
        )
        self.refused = Counter(
            "onebase_refusals_total", "Requests refused, by error code", ["code"], registry=registry
        )
        self.loads = Counter(
            "onebase_adapter_loads_total", "Adapters brought into memory", adapter, registry=registry
        )
        self.load_seconds = Histogram(
            "onebase_adapter_load_seconds",
            "Time to bring an adapter into memory",
            buckets=_SECONDS,
            registry=registry,
        )
        self.evictions = Counter(
            "onebase_adapter_evictions_total", "Adapters taken out of memory", adapter, registry=registry
        )
        self.place_wait = Histogram(
            "onebase_adapter_wait_seconds",
            "Wait of a request for its adapter's place",
            buckets=_SECONDS,
            registry=registry,
        )
        self.resident = Gauge("onebase_adapters_resident", "Adapters in memory", registry=registry)
        self.running = Gauge("onebase_requests_running", "Requests let in", registry=registry)
        self.waiting = Gauge("onebase_requests_waiting", "Requests waiting at the door", registry=registry)
        self.restarts = Gauge("onebase_engine_restarts", "Times the engine was restarted", registry=registry)
        self.ready = Gauge(
            "onebase_engine_ready_seconds", "Time the engine took to get ready", registry=registry
        )

    def label(self, adapter: str) -> str:
        """The label of an adapter version: itself while there is room, else `other`; never changes back."""
        if adapter in self._labels:
            return adapter
        if len(self._labels) < self._limit:
            self._labels.add(adapter)
            return adapter
        return "other"

    def loaded(self, ref: str, seconds: float) -> None:
        self.loads.labels(self.label(ref)).inc()
        self.load_seconds.observe(seconds)

    def evicted(self, ref: str) -> None:
        self.evictions.labels(self.label(ref)).inc()

    def waited(self, seconds: float) -> None:
        self.place_wait.observe(seconds)
