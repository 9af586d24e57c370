"""Metrics as a Prometheus text file, for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mqi_hpc.core.monitoring import Metric, MetricKind
from mqi_hpc.infrastructure.monitoring.replaced import replace_file

# Read by node_exporter's user. No metric holds a case, a folder or a person: counts and names of devices.
_MODE = 0o644

Family = CounterMetricFamily | GaugeMetricFamily


def metrics_text(metrics: Sequence[Metric]) -> bytes:
    """Return metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(metrics))
    return generate_latest(registry)


def write_metrics(path: Path, metrics: Sequence[Metric]) -> None:
    """Replace the metrics file as a whole, readable for all; raises OSError."""
    replace_file(path, metrics_text(metrics), _MODE)


class _Given(Collector):
    """Collects what it was given."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        for metric in self._metrics:
            yield _family(metric)


def _family(metric: Metric) -> Family:
    names = list(metric.samples[0][0]) if metric.samples else []
    make = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family: Family = make(metric.name, metric.help, labels=names)
    for labels, value in metric.samples:
        family.add_metric([labels[name] for name in names], value)
    return family
