"""Metrics: labels are bounded and never change hands."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from server.metrics import Metrics


def test_labels_are_bounded_and_sticky() -> None:
    metrics = Metrics(CollectorRegistry(), limit=3)
    assert [metrics.label(name) for name in ("a", "b", "a", "c", "d", "e")] == [
        "a",
        "b",
        "a",
        "c",
        "other",
        "other",
    ]
    for number in range(1000):
        assert metrics.label(f"x{number}") == "other"
    assert [metrics.label(name) for name in ("a", "b", "c", "d")] == ["a", "b", "c", "other"]


def test_what_residency_tells_is_counted_under_the_label() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, limit=1)
    for ref in ("a@1", "b@1", "c@1"):
        metrics.loaded(ref, 0.02)
        metrics.evicted(ref)
    metrics.waited(0.5)
    value = registry.get_sample_value
    for series in ("onebase_adapter_loads_total", "onebase_adapter_evictions_total"):
        assert value(series, {"adapter": "a@1"}) == 1
        assert value(series, {"adapter": "other"}) == 2
    assert value("onebase_adapter_load_seconds_count") == 3
    assert value("onebase_adapter_wait_seconds_sum") == 0.5


def test_two_servers_in_one_process_keep_their_series_apart() -> None:
    one, two = CollectorRegistry(), CollectorRegistry()
    Metrics(one, limit=1).waited(1)
    Metrics(two, limit=1)
    assert one.get_sample_value("onebase_adapter_wait_seconds_count") == 1
    assert two.get_sample_value("onebase_adapter_wait_seconds_count") == 0


def test_names_end_in_their_unit() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, limit=5)
    metrics.loaded("a@1", 1)
    for line in generate_latest(registry).decode().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name.startswith("onebase_")
            if kind == "counter":
                assert name.endswith("_total")
            elif kind == "histogram":
                assert name.endswith("_seconds")
