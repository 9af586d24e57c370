"""When the monitor looks, what it says in numbers, and what it finds wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mqi_hpc.core.interfaces import IHostProbe, IMonitorSink, ISystemMonitor
from mqi_hpc.core.metrics import metrics_of
from mqi_hpc.core.models import (
    Beam,
    Case,
    CaseStatus,
    Job,
    JobStatus,
    SubmitState,
    Task,
    TaskStatus,
    TaskType,
)
from mqi_hpc.core.monitoring import (
    DiskReading,
    DiskUsage,
    GPUReading,
    GPUStatus,
    Health,
    HealthStatus,
    HostStatus,
    LoopState,
    Metric,
    MetricKind,
    Snapshot,
)
from mqi_hpc.domain.system_monitor import MonitorLimits, SystemMonitor, Tally
from mqi_hpc.infrastructure.monitoring.metrics import metrics_text
from tests.support.memory_store import MemoryStore
from tests.support.world import NOW, Clock

GB = 1_000_000_000
LIMITS = MonitorLimits(
    metrics_interval=30,
    health_interval=60,
    min_free=100 * GB,
    min_free_percent=5,
    look_limit=600,
    scan_limit=300,
)
HOST = HostStatus(
    cpu_percent=25.0,
    cpus=8,
    load=(0.5, 0.25, 0.125),
    memory_total=64,
    memory_available=32,
    process_rss=16,
    process_threads=4,
    process_fds=12,
)
GPU = GPUStatus(
    index=0,
    uuid="GPU-1",
    name="H100",
    utilization=50.0,
    memory_used=1,
    memory_total=2,
    temperature=40.0,
    power=70.5,
)


def disk(path: str, free: int = 500 * GB, total: int = 1000 * GB, device: int = 0) -> DiskReading:
    usage = DiskUsage(path=path, total=total, used=total - free, free=free, device=device)
    return DiskReading(path=path, usage=usage, age=1.0)


class Probe:
    """A machine as the test wants it."""

    def __init__(self) -> None:
        self.disks: dict[str, DiskReading] = {}
        self.reading = GPUReading(gpus=(GPU,), age=2.0)
        self.looks = 0

    def host(self) -> HostStatus:
        self.looks += 1
        return HOST

    def disk(self, path: str) -> DiskReading:
        return self.disks.get(path, disk(path))

    def disk_usage(self, path: str) -> DiskUsage:
        usage = self.disk(path).usage
        if usage is None:
            raise OSError("no answer")
        return usage

    def gpus(self) -> GPUReading:
        return self.reading


class Sink:
    """What was published."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.last_metrics: tuple[Metric, ...] = ()
        self.last_health: Health | None = None

    def metrics(self, metrics: Sequence[Metric]) -> None:
        self.said.append("metrics")
        self.last_metrics = tuple(metrics)

    def health(self, health: Health) -> None:
        self.said.append("health")
        self.last_health = health


class Bench:
    """A monitor with everything around it."""

    def __init__(self) -> None:
        self.clock, self.probe, self.sink = Clock(), Probe(), Sink()
        probe: IHostProbe = self.probe
        sink: IMonitorSink = self.sink
        places = {"state": "/state", "results": "/results"}
        self.monitor = SystemMonitor(probe, sink, self.clock, limits=LIMITS, places=places, version="1.2")
        self.port: ISystemMonitor = self.monitor
        self.loop = LoopState()
        self.asked = 0

    def state(self) -> LoopState:
        self.asked += 1
        return self.loop

    def tick(self, at: float) -> list[str]:
        self.clock.time = at
        before = len(self.sink.said)
        self.monitor.tick(self.state)
        return self.sink.said[before:]

    def findings(self, **loop: Any) -> list[tuple[str, str]]:
        health = self.monitor.health(self.monitor.sample(), LoopState(**loop))
        assert all(finding.cure for finding in health.findings)
        worst = [str(finding.status) for finding in health.findings]
        expected = "failing" if "failing" in worst else "warning" if worst else "ok"
        assert health.status == expected
        return [(str(finding.status), finding.what) for finding in health.findings]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# When


def test_each_at_its_interval(bench: Bench) -> None:
    assert bench.monitor.next_due() == 0.0
    assert bench.tick(0) == ["metrics", "health"]
    assert bench.monitor.next_due() == 30.0
    assert bench.tick(29.9) == []
    assert bench.tick(30) == ["metrics"]
    assert bench.tick(31) == []
    assert bench.monitor.next_due() == 29.0
    assert bench.tick(60) == ["metrics", "health"]
    # The loop's state is asked, and the machine looked at, only where something is due.
    assert (bench.asked, bench.probe.looks) == (3, 3)


def test_a_long_stall_is_not_made_up_for(bench: Bench) -> None:
    bench.tick(0)
    assert bench.tick(10_000) == ["metrics", "health"]
    assert bench.tick(10_001) == []
    assert bench.monitor.next_due() == 29.0
    bench.clock.time = 20_000
    assert bench.monitor.next_due() == 0.0


def test_health_more_often_than_metrics(bench: Bench) -> None:
    bench.monitor.limits = replace(LIMITS, metrics_interval=100, health_interval=10)
    bench.tick(0)
    assert bench.monitor.next_due() == 10.0
    assert bench.tick(10) == ["health"]
    assert bench.sink.last_health is not None and bench.sink.last_health.interval == 10


@given(st.lists(st.floats(0, 500), min_size=1, max_size=60))
def test_never_twice_within_an_interval_and_never_late(steps: list[float]) -> None:
    bench, now, last = Bench(), 0.0, dict[str, float]()
    for step in steps:
        now += step
        said = bench.tick(now)
        for kind, interval in (("metrics", 30), ("health", 60)):
            due = kind not in last or now - last[kind] >= interval
            assert (kind in said) == due
            if due:
                last[kind] = now


def test_a_clean_end_is_said(bench: Bench) -> None:
    bench.clock.time = 7
    bench.monitor.stopped()
    assert bench.sink.last_health == Health(status=HealthStatus.STOPPED, time=NOW + 7, interval=60)


# What is asked of it


def test_the_specifications_questions(bench: Bench) -> None:
    assert bench.port.get_gpu_status() == [GPU]
    assert bench.port.get_cpu_usage() == 25.0
    assert bench.port.get_disk_usage("/x") == disk("/x").usage
    bench.probe.disks["/x"] = DiskReading(path="/x")
    with pytest.raises(OSError, match="no answer"):
        bench.port.get_disk_usage("/x")
    assert bench.port.sample() == Snapshot(
        time=NOW,
        host=HOST,
        disks={"state": disk("/state"), "results": disk("/results")},
        gpus=bench.probe.reading,
    )


# The metrics


def published(metrics: Sequence[Metric]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads of them."""
    families = text_string_to_metric_families(metrics_text(metrics).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


LOOP = LoopState(
    cases={CaseStatus.PROCESSING: 3, CaseStatus.COMPLETED: 40},
    jobs={JobStatus.RUNNING: 3},
    tasks={(TaskType.BEAM_CALC, TaskStatus.RUNNING): 5},
    attention=2,
    last_good_look=12.5,
    scan_age=30.0,
    outage_failures=1,
    outage_why="no route to host",
    connections=2,
    polls=100,
    poll_failures=4,
    submissions=43,
    gpu_slots_used=5,
    gpu_slots=8,
    cluster_free=7 * GB,
)
WHOLE = Snapshot(
    time=NOW,
    host=HOST,
    disks={"state": disk("/state"), "results": disk("/results", free=GB)},
    gpus=GPUReading(gpus=(GPU,), age=2.0),
)


def test_the_five_kinds() -> None:
    read = published(metrics_of(WHOLE, LOOP, "1.2"))
    gpu = (("gpu", "0"), ("uuid", "GPU-1"))
    expected: Mapping[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("mqi_hpc_build_info", (("version", "1.2"),)): 1,
        ("mqi_hpc_sample_timestamp_seconds", ()): NOW,
        ("mqi_hpc_cpu_usage_ratio", ()): 0.25,
        ("mqi_hpc_cpus", ()): 8,
        ("mqi_hpc_load_average", (("window", "1m"),)): 0.5,
        ("mqi_hpc_load_average", (("window", "15m"),)): 0.125,
        ("mqi_hpc_memory_total_bytes", ()): 64,
        ("mqi_hpc_memory_available_bytes", ()): 32,
        ("mqi_hpc_process_resident_memory_bytes", ()): 16,
        ("mqi_hpc_process_threads", ()): 4,
        ("mqi_hpc_process_open_fds", ()): 12,
        ("mqi_hpc_disk_total_bytes", (("place", "state"),)): 1000 * GB,
        ("mqi_hpc_disk_used_bytes", (("place", "state"),)): 500 * GB,
        ("mqi_hpc_disk_free_bytes", (("place", "results"),)): GB,
        ("mqi_hpc_disk_answer_age_seconds", (("place", "results"),)): 1,
        ("mqi_hpc_gpu_info", (("gpu", "0"), ("name", "H100"), ("uuid", "GPU-1"))): 1,
        ("mqi_hpc_gpu_utilization_ratio", gpu): 0.5,
        ("mqi_hpc_gpu_memory_used_bytes", gpu): 1,
        ("mqi_hpc_gpu_memory_total_bytes", gpu): 2,
        ("mqi_hpc_gpu_temperature_celsius", gpu): 40,
        ("mqi_hpc_gpu_power_watts", gpu): 70.5,
        ("mqi_hpc_gpu_answer_age_seconds", ()): 2,
        ("mqi_hpc_gpu_slots_in_use", ()): 5,
        ("mqi_hpc_gpu_slots", ()): 8,
        ("mqi_hpc_cases", (("status", "processing"),)): 3,
        ("mqi_hpc_cases", (("status", "rejected"),)): 0,
        ("mqi_hpc_jobs", (("status", "running"),)): 3,
        ("mqi_hpc_tasks", (("status", "running"), ("type", "beam_calc"))): 5,
        ("mqi_hpc_tasks", (("status", "lost"), ("type", "download"))): 0,
        ("mqi_hpc_cases_needing_attention", ()): 2,
        ("mqi_hpc_scan_age_seconds", ()): 30,
        ("mqi_hpc_cluster_last_good_look_age_seconds", ()): 12.5,
        ("mqi_hpc_cluster_outage_failures", ()): 1,
        ("mqi_hpc_cluster_access_refused", ()): 0,
        ("mqi_hpc_cluster_free_bytes", ()): 7 * GB,
        ("mqi_hpc_connections_open", ()): 2,
        ("mqi_hpc_polls_total", ()): 100,
        ("mqi_hpc_poll_failures_total", ()): 4,
        ("mqi_hpc_submissions_total", ()): 43,
    }
    assert {key: read.get(key) for key in expected} == expected
    assert sum(name == "mqi_hpc_tasks" for name, _ in read) == len(TaskType) * len(TaskStatus)


def test_what_is_not_known_is_left_out_never_said_as_nought() -> None:
    lost = GPUReading(gpus=(GPUStatus(index=1, note="GPU is lost"),))
    waiting = {"state": DiskReading(path="/state", waiting=3.0)}
    metrics = metrics_of(Snapshot(time=NOW, host=HostStatus(), disks=waiting, gpus=lost), LoopState(), "1.2")
    names = {metric.name.removeprefix("mqi_hpc_") for metric in metrics}
    counted = {"cases", "jobs", "tasks", "cases_needing_attention", "connections_open"}
    counters = {"polls_total", "poll_failures_total", "submissions_total"}
    cluster = {"cluster_outage_failures", "cluster_access_refused", "gpu_slots_in_use"}
    assert names == {"build_info", "sample_timestamp_seconds", "gpu_info", *counted, *counters, *cluster}
    assert published(metrics)["mqi_hpc_gpu_info", (("gpu", "1"), ("name", ""), ("uuid", ""))] == 1


def test_names_and_labels_keep_prometheus_rules_and_name_nobody() -> None:
    metrics = metrics_of(WHOLE, LOOP, "1.2")
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert re.fullmatch(r"mqi_hpc_[a-z][a-z0-9_]*", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") is (metric.kind is MetricKind.COUNTER)
        assert {label for labels, _ in metric.samples for label in labels} <= {
            "version",
            "window",
            "place",
            "gpu",
            "uuid",
            "name",
            "status",
            "type",
        }
        assert "/" not in "".join(value for labels, _ in metric.samples for value in labels.values())
    # Text that might name a patient, a folder or a host stays out.
    assert b"no route" not in metrics_text(metrics)


# Health


def test_nothing_wrong(bench: Bench) -> None:
    assert bench.findings(last_good_look=600.0, scan_age=300.0, cluster_free=100 * GB) == []


def test_too_little_room_here(bench: Bench) -> None:
    bench.probe.disks["/results"] = disk("/results", free=99 * GB)
    text = "the disk of results (/results) has 99.0 GB free, resources.min_disk_space_gb asks for 100.0"
    assert bench.findings() == [("failing", f"{text}: work waits")]


def test_a_share_too_small_asks_for_a_prune(bench: Bench) -> None:
    bench.probe.disks["/state"] = disk("/state", free=400 * GB, total=10_000 * GB)
    text = "the disk of state (/state) has 4.0 % free, below retention.min_free_percent (5 %)"
    assert bench.findings() == [("warning", text)]


def test_one_disk_for_state_and_results_is_one_finding(bench: Bench) -> None:
    for path in ("/state", "/results"):
        bench.probe.disks[path] = disk(path, free=GB, device=7)
    assert len(bench.findings()) == 1
    for path in ("/state", "/results"):
        bench.probe.disks[path] = disk(path, free=GB)
    assert len(bench.findings()) == 2


def test_a_disk_that_hangs(bench: Bench) -> None:
    bench.probe.disks["/results"] = replace(disk("/results"), waiting=45.0)
    assert bench.findings() == [
        ("failing", "the disk of results (/results) has not answered for 45 s"),
    ]


def test_a_disk_that_has_not_had_the_time_to_answer(bench: Bench) -> None:
    bench.probe.disks["/results"] = DiskReading(path="/results", waiting=0.01)
    assert bench.findings() == []


def test_a_disk_that_cannot_be_looked_at(bench: Bench) -> None:
    bench.probe.disks["/results"] = DiskReading(path="/results", error="Permission denied", age=1.0)
    text = "the disk of results (/results) cannot be looked at: Permission denied"
    assert bench.findings() == [("warning", text)]


def test_an_empty_file_system_has_no_room() -> None:
    assert DiskUsage(path="/", total=0, used=0, free=0).free_percent == 0.0


@pytest.mark.parametrize(
    ("loop", "status", "text"),
    [
        (
            {"outage_failures": 1, "outage_why": "timed out"},
            "warning",
            "the cluster did not answer 1 time in a row: timed out",
        ),
        (
            {"outage_failures": 3, "outage_why": "timed out", "last_good_look": 9999.0},
            "warning",
            "the cluster did not answer 3 times in a row: timed out",
        ),
        (
            {"outage_failures": 1, "outage_why": "key refused", "refused": True},
            "failing",
            "the cluster refuses us, and is asked again only every 15 minutes: key refused",
        ),
        (
            {"last_good_look": 601.0},
            "warning",
            "the queue was not seen for 601 s though the cluster is reached",
        ),
        (
            {"cluster_free": 99 * GB},
            "failing",
            "the cluster's workspace has 99.0 GB free, resources.min_disk_space_gb asks for 100.0"
            ": uploads wait",
        ),
        ({"scan_age": 301.0}, "warning", "no scan for new cases has ended for 301 s"),
        ({"attention": 1}, "warning", "1 case needs attention"),
        ({"attention": 2}, "warning", "2 cases need attention"),
    ],
)
def test_what_is_wrong_with_the_work(bench: Bench, loop: dict[str, Any], status: str, text: str) -> None:
    assert bench.findings(**loop) == [(status, text)]


def test_the_worst_finding_is_the_status(bench: Bench) -> None:
    found = bench.findings(attention=1, refused=True, outage_why="key refused")
    assert [status for status, _ in found] == ["failing", "warning"]


# The tally


def test_the_store_is_counted() -> None:
    store = MemoryStore()
    when = datetime(2026, 1, 1, tzinfo=UTC)
    beam = Beam(index=0, number=1, name="G", energies=(100.0,), input_digest="a" * 64, seed=1)
    with store.transaction() as unit:
        for number, status in enumerate([CaseStatus.PROCESSING, CaseStatus.FAILED, CaseStatus.FAILED]):
            key = f"key{number}"
            case = Case(
                case_id=key,
                status=status,
                beam_count=1,
                created_at=when,
                updated_at=when,
                site="s",
                instance="i",
                identity=key,
                label=key,
                folder="/f",
                plan_uid="1.2",
                machine="G1",
                beams=(beam,),
                files=(),
                attention="look" if number == 2 else None,
            )
            unit.cases.put(case)
            job = Job(
                job_id=f"{key}-j01",
                case_id=key,
                status=JobStatus.FAILED if number else JobStatus.RUNNING,
                created_at=when,
                name="j01",
                submit_state=SubmitState.PLANNED,
                submissions=(),
            )
            unit.jobs.put(job)
            kinds = (TaskType.UPLOAD, TaskType.INTERPRET)
            for kind in kinds:
                unit.jobs.put_task(Task(task_id=f"{job.job_id}-{kind}", job_id=job.job_id, type=kind))
    with store.transaction(write=False) as unit:
        state = Tally().into(LoopState(polls=7), unit)
    assert state == LoopState(
        polls=7,
        cases={"processing": 1, "failed": 2},
        jobs={"running": 1, "failed": 2},
        tasks={("upload", "pending"): 3, ("interpret", "pending"): 3},
        attention=1,
    )
    # The words of the store and those of the metrics are the same.
    assert published(metrics_of(WHOLE, state, "1"))["mqi_hpc_cases", (("status", "failed"),)] == 2
