"""The metrics: machine (CPU, memory, disk, GPU) and workflow, named by Prometheus' rules.

Labels hold only places, devices and the words of statuses: never a case, a folder or a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mqi_hpc.core.models import CaseStatus, JobStatus, TaskStatus, TaskType
from mqi_hpc.core.monitoring import GPUReading, HostStatus, LoopState, Metric, MetricKind, Snapshot

_PERCENT = 100.0


def metrics_of(snapshot: Snapshot, loop: LoopState, version: str) -> tuple[Metric, ...]:
    """Return all metrics of one sample; what is not known is left out, never said as 0."""
    found = (
        Metric("mqi_hpc_build_info", "The program's version, as a label.", (({"version": version}, 1.0),)),
        _one("sample_timestamp_seconds", "When these metrics were taken (UTC epoch).", snapshot.time),
        *_machine(snapshot.host),
        *_disks(snapshot),
        *_gpus(snapshot.gpus, loop),
        *_workflow(loop),
        *_cluster(loop),
    )
    return tuple(metric for metric in found if metric.samples)


def _machine(host: HostStatus) -> Iterator[Metric]:
    busy = None if host.cpu_percent is None else host.cpu_percent / _PERCENT
    yield _one("cpu_usage_ratio", "Share of all CPUs in use since the sample before, 0 to 1.", busy)
    yield _one("cpus", "CPUs of this machine.", host.cpus)
    windows = zip(("1m", "5m", "15m"), host.load or (), strict=False)
    yield _by("load_average", "Load averages.", "window", dict(windows))
    yield _one("memory_total_bytes", "Memory of this machine.", host.memory_total)
    yield _one("memory_available_bytes", "Memory that programs could still have.", host.memory_available)
    yield _one("process_resident_memory_bytes", "Memory of this program.", host.process_rss)
    yield _one("process_threads", "Threads of this program.", host.process_threads)
    yield _one("process_open_fds", "Open file descriptors of this program.", host.process_fds)


def _disks(snapshot: Snapshot) -> Iterator[Metric]:
    usages = {place: disk.usage for place, disk in snapshot.disks.items() if disk.usage is not None}
    ages = {place: disk.age for place, disk in snapshot.disks.items() if disk.age is not None}
    yield _by("disk_total_bytes", "Size of the disk.", "place", {p: u.total for p, u in usages.items()})
    yield _by("disk_used_bytes", "Used on the disk.", "place", {p: u.used for p, u in usages.items()})
    yield _by("disk_free_bytes", "Free to this user.", "place", {p: u.free for p, u in usages.items()})
    yield _by("disk_answer_age_seconds", "How old the disk's last answer is.", "place", ages)


def _gpus(reading: GPUReading, loop: LoopState) -> Iterator[Metric]:
    def each(name: str, text: str, values: list[float | None]) -> Metric:
        samples = zip(reading.gpus, values, strict=True)
        labelled = (({"gpu": str(g.index), "uuid": g.uuid or ""}, v) for g, v in samples if v is not None)
        return Metric(f"mqi_hpc_{name}", text, tuple((labels, float(value)) for labels, value in labelled))

    gpus = reading.gpus
    names = [({"gpu": str(g.index), "uuid": g.uuid or "", "name": g.name or ""}, 1.0) for g in gpus]
    yield Metric("mqi_hpc_gpu_info", "A GPU of this machine, as labels.", tuple(names))
    used = [None if g.utilization is None else g.utilization / _PERCENT for g in gpus]
    yield each("gpu_utilization_ratio", "Share of time in which the GPU computed, 0 to 1.", used)
    yield each("gpu_memory_used_bytes", "Memory in use on the GPU.", [g.memory_used for g in gpus])
    yield each("gpu_memory_total_bytes", "Memory of the GPU.", [g.memory_total for g in gpus])
    yield each("gpu_temperature_celsius", "Temperature of the GPU.", [g.temperature for g in gpus])
    yield each("gpu_power_watts", "Power the GPU draws.", [g.power for g in gpus])
    yield _one("gpu_answer_age_seconds", "How old the driver's last answer is.", reading.age)
    yield _one("gpu_slots_in_use", "Slots of our GPU budget that jobs hold.", loop.gpu_slots_used)
    yield _one("gpu_slots", "Our GPU budget (resources.gpu_count).", loop.gpu_slots)


def _workflow(loop: LoopState) -> Iterator[Metric]:
    yield _by("cases", "Cases by status.", "status", {str(s): loop.cases.get(s, 0) for s in CaseStatus})
    yield _by("jobs", "Jobs by status.", "status", {str(s): loop.jobs.get(s, 0) for s in JobStatus})
    tasks = tuple(
        ({"type": str(kind), "status": str(status)}, float(loop.tasks.get((kind, status), 0)))
        for kind in TaskType
        for status in TaskStatus
    )
    yield Metric("mqi_hpc_tasks", "Tasks by type and status.", tasks)
    yield _one("cases_needing_attention", "Cases that wait for a person.", loop.attention)
    yield _one("scan_age_seconds", "Time since a scan for new cases ended.", loop.scan_age)


def _cluster(loop: LoopState) -> Iterator[Metric]:
    look = loop.last_good_look
    yield _one("cluster_last_good_look_age_seconds", "Time since the queue was seen.", look)
    yield _one("cluster_outage_failures", "Failures in a row to reach the cluster.", loop.outage_failures)
    yield _one("cluster_access_refused", "1 while the cluster refuses our key.", int(loop.refused))
    yield _one("cluster_free_bytes", "Free space of the cluster's workspace.", loop.cluster_free)
    yield _one("connections_open", "Open SSH connections.", loop.connections)
    yield _count("polls", "Looks at the cluster since the start of the program.", loop.polls)
    yield _count("poll_failures", "Those of them that did not show the queue.", loop.poll_failures)
    yield _count("submissions", "Chains handed to Slurm since the start.", loop.submissions)


def _one(name: str, text: str, value: float | None) -> Metric:
    return Metric(f"mqi_hpc_{name}", text, () if value is None else (({}, float(value)),))


def _count(name: str, text: str, value: int) -> Metric:
    return Metric(f"mqi_hpc_{name}_total", text, (({}, float(value)),), MetricKind.COUNTER)


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    samples = tuple(({label: key}, float(value)) for key, value in values.items())
    return Metric(f"mqi_hpc_{name}", text, samples)
