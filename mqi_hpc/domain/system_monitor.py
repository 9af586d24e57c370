"""Observes machine, program and work: says when a look is due, what the metrics are, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from mqi_hpc.core.interfaces import IClock, IHostProbe, IMonitorSink, IUnit
from mqi_hpc.core.metrics import metrics_of
from mqi_hpc.core.monitoring import (
    DiskUsage,
    Finding,
    GPUStatus,
    Health,
    HealthStatus,
    LoopState,
    Snapshot,
)

_HUNG_SECONDS = 20.0
"""A disk that has not answered for so long is told of."""
_GIGABYTE = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorLimits:
    """When to look, and what is too little or too long: seconds, bytes, percent.

    `look_limit` and `scan_limit`: the longest age of a good look at the cluster and of a scan.
    """

    metrics_interval: float
    health_interval: float
    min_free: float
    min_free_percent: float
    look_limit: float
    scan_limit: float


class SystemMonitor:
    """ISystemMonitor. `places` names the folders whose disks are watched ("state", "results").

    `limits` may be replaced while it runs.
    """

    def __init__(
        self,
        probe: IHostProbe,
        sink: IMonitorSink,
        clock: IClock,
        *,
        limits: MonitorLimits,
        places: Mapping[str, str],
        version: str,
    ) -> None:
        self._probe = probe
        self._sink = sink
        self._clock = clock
        self.limits = limits
        self._places = dict(places)
        self._version = version
        self._metrics_at: float | None = None
        self._health_at: float | None = None

    def get_gpu_status(self) -> list[GPUStatus]:
        """Return the GPUs of this machine as last heard of."""
        return list(self._probe.gpus().gpus)

    def get_disk_usage(self, path: str) -> DiskUsage:
        """Return how full the disk of a path is; waits for it, raises OSError."""
        return self._probe.disk_usage(path)

    def get_cpu_usage(self) -> float | None:
        """Return the percent of all CPUs in use since the look before; None where it is not known."""
        return self._probe.host().cpu_percent

    def sample(self) -> Snapshot:
        """Look at everything, without waiting for what is slow: that has its last answer's age."""
        return Snapshot(
            time=self._clock.now(),
            host=self._probe.host(),
            disks={place: self._probe.disk(path) for place, path in self._places.items()},
            gpus=self._probe.gpus(),
        )

    def tick(self, state: Callable[[], LoopState]) -> None:
        """Publish what is due: each at the first tick, then by its interval. `state` is asked only then."""
        now = self._clock.monotonic()
        metrics = _due(self._metrics_at, now, self.limits.metrics_interval)
        health = _due(self._health_at, now, self.limits.health_interval)
        if not (metrics or health):
            return
        loop, snapshot = state(), self.sample()
        if metrics:
            self._metrics_at = now
            self._sink.metrics(metrics_of(snapshot, loop, self._version))
        if health:
            self._health_at = now
            self._sink.health(self.health(snapshot, loop))

    def next_due(self) -> float:
        """Return the seconds until something is due, 0 where it is already."""
        now = self._clock.monotonic()
        limits = self.limits
        waits = ((self._metrics_at, limits.metrics_interval), (self._health_at, limits.health_interval))
        return min(0.0 if at is None else max(0.0, at + interval - now) for at, interval in waits)

    def stopped(self) -> None:
        """Say that the daemon ends as it was asked to."""
        health = Health(
            status=HealthStatus.STOPPED, time=self._clock.now(), interval=self.limits.health_interval
        )
        self._sink.health(health)

    def health(self, snapshot: Snapshot, loop: LoopState) -> Health:
        """Return what a sample and the loop's state say of our health."""
        findings = (*self._disks(snapshot), *self._cluster(loop), *self._work(loop))
        worst = HealthStatus.OK
        for status in (HealthStatus.WARNING, HealthStatus.FAILING):
            if any(finding.status is status for finding in findings):
                worst = status
        return Health(
            status=worst, time=snapshot.time, interval=self.limits.health_interval, findings=findings
        )

    def _disks(self, snapshot: Snapshot) -> Iterator[Finding]:
        told: set[int] = set()
        for place, reading in snapshot.disks.items():
            what = f"the disk of {place} ({reading.path})"
            if (reading.waiting or 0.0) >= _HUNG_SECONDS:
                yield Finding(
                    status=HealthStatus.FAILING,
                    what=f"{what} has not answered for {reading.waiting:.0f} s",
                    cure="Is it a network share whose server is down? Try `df` on it",
                )
            elif reading.error:
                yield Finding(
                    status=HealthStatus.WARNING,
                    what=f"{what} cannot be looked at: {reading.error}",
                    cure="Is the folder there, and may this user enter it?",
                )
            elif reading.usage is not None and reading.usage.device not in told:
                # State and results on one disk: one finding.
                told |= {reading.usage.device} - {0}
                yield from self._room(what, reading.usage)

    def _room(self, what: str, usage: DiskUsage) -> Iterator[Finding]:
        if usage.free < self.limits.min_free:
            yield Finding(
                status=HealthStatus.FAILING,
                what=f"{what} has {usage.free / _GIGABYTE:.1f} GB free, resources.min_disk_space_gb asks for"
                f" {self.limits.min_free / _GIGABYTE:.1f}: work waits",
                cure="Make room (`mqi-hpc prune` shows what may go), or lower the setting",
            )
        elif usage.free_percent < self.limits.min_free_percent:
            yield Finding(
                status=HealthStatus.WARNING,
                what=f"{what} has {usage.free_percent:.1f} % free, below retention.min_free_percent"
                f" ({self.limits.min_free_percent:g} %)",
                cure="`mqi-hpc prune` shows what may go",
            )

    def _cluster(self, loop: LoopState) -> Iterator[Finding]:
        if loop.refused:
            yield Finding(
                status=HealthStatus.FAILING,
                what=f"the cluster refuses us, and is asked again only every 15 minutes: {loop.outage_why}",
                cure="`mqi-hpc doctor` tells what to mend; a restart of the daemon asks at once",
            )
        elif loop.outage_failures:
            times = f"{loop.outage_failures} time{'s' if loop.outage_failures > 1 else ''} in a row"
            yield Finding(
                status=HealthStatus.WARNING,
                what=f"the cluster did not answer {times}: {loop.outage_why}",
                cure="Nothing is lost, it is asked again; where it lasts, `mqi-hpc doctor` tells more",
            )
        elif loop.last_good_look is not None and loop.last_good_look > self.limits.look_limit:
            yield Finding(
                status=HealthStatus.WARNING,
                what=f"the queue was not seen for {loop.last_good_look:.0f} s though the cluster is reached",
                cure="Does `squeue` work there? The log says what the polls came to",
            )
        if loop.cluster_free is not None and loop.cluster_free < self.limits.min_free:
            yield Finding(
                status=HealthStatus.FAILING,
                what=f"the cluster's workspace has {loop.cluster_free / _GIGABYTE:.1f} GB free,"
                f" resources.min_disk_space_gb asks for {self.limits.min_free / _GIGABYTE:.1f}: uploads wait",
                cure="Make room there (`mqi-hpc prune` shows what may go), or lower the setting",
            )

    def _work(self, loop: LoopState) -> Iterator[Finding]:
        if loop.scan_age is not None and loop.scan_age > self.limits.scan_limit:
            yield Finding(
                status=HealthStatus.WARNING,
                what=f"no scan for new cases has ended for {loop.scan_age:.0f} s",
                cure="Does paths.local_logdata answer? Try `ls` on it",
            )
        if loop.attention:
            some = "case needs" if loop.attention == 1 else "cases need"
            yield Finding(
                status=HealthStatus.WARNING,
                what=f"{loop.attention} {some} attention",
                cure="`mqi-hpc status` says which, `mqi-hpc show CASE` says more",
            )


class Tally:
    """Counts cases, jobs and tasks of the store."""

    def into(self, state: LoopState, unit: IUnit) -> LoopState:
        """Return `state` with what the store counts."""
        counts = unit.counts()
        return replace(
            state, cases=counts.cases, jobs=counts.jobs, tasks=counts.tasks, attention=counts.attention
        )


def _due(at: float | None, now: float, interval: float) -> bool:
    return at is None or now - at >= interval
