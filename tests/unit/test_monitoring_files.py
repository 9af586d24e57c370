"""Metrics and health as files: whole or not at all, for whom they are meant, and never an error upwards."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from mqi_hpc import __version__
from mqi_hpc.core.monitoring import Finding, Health, HealthStatus, Metric, MetricKind
from mqi_hpc.infrastructure.monitoring.health import read_health, write_health
from mqi_hpc.infrastructure.monitoring.metrics import metrics_text, write_metrics
from mqi_hpc.infrastructure.monitoring.replaced import replace_file
from mqi_hpc.infrastructure.monitoring.sink import FileSink

NOW = 1_790_000_000.0
METRICS = (
    Metric("mqi_hpc_cases", "Cases by status.", (({"status": "new"}, 2.0), ({"status": "failed"}, 0.0))),
    Metric("mqi_hpc_polls_total", "Looks at the cluster.", (({}, 7.0),), MetricKind.COUNTER),
    Metric("mqi_hpc_nothing", "Without a sample.", ()),
)
FINDING = Finding(status=HealthStatus.WARNING, what="1 case needs attention", cure="look")
HEALTH = Health(status=HealthStatus.WARNING, time=NOW, interval=60.0, findings=(FINDING,))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Metrics


def test_metrics_in_prometheus_words() -> None:
    assert metrics_text(METRICS).decode() == (
        "# HELP mqi_hpc_cases Cases by status.\n# TYPE mqi_hpc_cases gauge\n"
        'mqi_hpc_cases{status="new"} 2.0\nmqi_hpc_cases{status="failed"} 0.0\n'
        "# HELP mqi_hpc_polls_total Looks at the cluster.\n# TYPE mqi_hpc_polls_total counter\n"
        "mqi_hpc_polls_total 7.0\n"
        "# HELP mqi_hpc_nothing Without a sample.\n# TYPE mqi_hpc_nothing gauge\n"
    )


_WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=20)


@given(st.dictionaries(_WORDS, st.floats(allow_nan=False), max_size=5))
def test_any_label_and_value_comes_back(values: dict[str, float]) -> None:
    metric = Metric("mqi_hpc_x", "Help.", tuple(({"place": place}, value) for place, value in values.items()))
    read = list(text_string_to_metric_families(metrics_text([metric]).decode()))
    assert {s.labels["place"]: s.value for family in read for s in family.samples} == values


def test_the_metrics_file_is_for_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_metrics(tmp_path / "new" / "metrics.prom", METRICS)
    finally:
        os.umask(before)
    assert mode(tmp_path / "new" / "metrics.prom") == 0o644
    assert mode(tmp_path / "new") == 0o700
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.prom"]


# A file that is replaced


def test_whoever_reads_sees_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [bytes([letter]) * 300_000 for letter in b"ab"]
    replace_file(path, texts[0], 0o600)
    done = threading.Event()
    torn: list[bytes] = []

    def reads() -> None:
        while not done.is_set():
            if (seen := path.read_bytes()) not in texts:
                torn.append(seen)

    reader = threading.Thread(target=reads)
    reader.start()
    for turn in range(100):
        replace_file(path, texts[turn % 2], 0o600)
    done.set()
    reader.join()
    assert torn == []


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("file", ".file.new"):
        (tmp_path / name).symlink_to(victim)
    replace_file(tmp_path / "file", b"new", 0o600)
    assert victim.read_text() == "mine"
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()


def test_an_end_by_force_leaves_at_most_one_file_behind_and_no_half_one(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from mqi_hpc.infrastructure.monitoring.replaced import replace_file\n"
        "path, turn = Path(sys.argv[1]), 0\n"
        "while True:\n"
        "    replace_file(path, b'%d' % (turn % 10) * 200_000, 0o600)\n"
        "    turn += 1\n"
        "    if turn == 3: print('going', flush=True)\n"
    )
    path = tmp_path / "file"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"going\n"
            writer.kill()
        text = path.read_bytes()
        assert text == text[:1] * 200_000
        assert {each.name for each in tmp_path.iterdir()} <= {"file", ".file.new"}
    replace_file(path, b"after", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# Health


def test_health_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    write_health(path, HEALTH)
    assert mode(path) == 0o600
    report = read_health(path, NOW + 5)
    assert (report.status, report.age, report.pid, report.version) == (
        "warning",
        5.0,
        os.getpid(),
        __version__,
    )
    assert report.findings == (FINDING,)
    assert not report.good
    assert json.loads(path.read_text()) == {
        "status": "warning",
        "time": NOW,
        "time_utc": "2026-09-21T14:13:20+00:00",
        "interval_seconds": 60.0,
        "next_write_expected": NOW + 60,
        "pid": os.getpid(),
        "version": __version__,
        "findings": [{"status": "warning", "what": "1 case needs attention", "cure": "look"}],
    }


@pytest.mark.parametrize(
    ("age", "status"),
    [(0, "ok"), (180, "ok"), (181, "stale"), (86400, "stale"), (-180, "ok"), (-181, "stale")],
)
def test_an_old_word_is_worth_nothing(tmp_path: Path, age: float, status: str) -> None:
    path = tmp_path / "health.json"
    write_health(path, Health(status=HealthStatus.OK, time=NOW, interval=60.0))
    report = read_health(path, NOW + age)
    assert report.status == status
    assert report.good is (status == "ok")
    assert bool(report.cure) is (status != "ok")


def test_a_dead_daemon(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    write_health(path, HEALTH)
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {gone.pid}'))
    report = read_health(path, NOW + 1)
    assert report.status == "dead"
    assert str(gone.pid) in report.why


def test_a_daemon_that_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    write_health(path, Health(status=HealthStatus.STOPPED, time=NOW, interval=60.0))
    report = read_health(path, NOW + 86400)
    assert (report.status, report.good) == ("stopped", False)


def test_no_health_file(tmp_path: Path) -> None:
    report = read_health(tmp_path / "health.json", NOW)
    assert (report.status, report.age) == ("missing", None)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    assert read_health(tmp_path, NOW).status == "unreadable"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["status", "time", "interval_seconds", "pid", "version", "findings"]), _JSON
    )
)
def test_any_json_is_judged_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.json"
    write_health(path, HEALTH)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    report = read_health(path, NOW + 1)
    assert report.status in ("warning", "ok", "failing", "stopped", "stale", "dead", "unreadable")


@given(st.integers(0, 400))
def test_a_health_file_cut_short_is_not_believed(tmp_path_factory: pytest.TempPathFactory, keep: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    write_health(path, HEALTH)
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: keep % len(whole)])
    assert read_health(path, NOW + 1).status == "unreadable"


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'{"status": "ok"}', b" " * 2**21, b"9" * 5000]
)
def test_rubbish_in_its_place(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "health.json"
    path.write_bytes(text)
    assert read_health(path, NOW).status == "unreadable"


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**70},
        {"pid": 0},
        {"pid": -1},
        {"time": 10**400},
        {"time": float("nan")},
        {"interval_seconds": 0},
    ],
)
def test_numbers_that_are_none(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "health.json"
    write_health(path, HEALTH)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert read_health(path, NOW + 1).status == "unreadable"


# The sink


def test_both_files_are_written(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "metrics.prom", tmp_path / "health.json")
    sink.metrics(METRICS)
    sink.health(HEALTH)
    assert (tmp_path / "metrics.prom").read_bytes() == metrics_text(METRICS)
    assert read_health(tmp_path / "health.json", NOW).status == "warning"


def test_a_failure_is_told_once_and_again_when_it_changes(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    sink = FileSink(taken / "metrics.prom", tmp_path / "health.json")
    with capture_logs() as logs:
        sink.metrics(METRICS)
        sink.metrics(METRICS)
        sink.health(HEALTH)
        assert [log["event"] for log in logs] == ["not written"]
        assert logs[0]["setting"] == "monitoring.metrics_file"
        taken.unlink()
        (taken / "metrics.prom").mkdir(parents=True)
        sink.metrics(METRICS)
        sink.metrics(METRICS)
        assert [log["event"] for log in logs] == ["not written", "not written"]
        (taken / "metrics.prom").rmdir()
        sink.metrics(METRICS)
        sink.metrics(METRICS)
    assert [log["event"] for log in logs] == ["not written", "not written", "written again"]
    assert [each.name for each in taken.iterdir()] == ["metrics.prom"]


def test_a_full_disk_keeps_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FileSink(tmp_path / "metrics.prom", tmp_path / "health.json")
    sink.health(HEALTH)

    def full(descriptor: int, mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with capture_logs() as logs:
        sink.health(Health(status=HealthStatus.OK, time=NOW + 60, interval=60.0))
    assert [log["why"] for log in logs] == ["No space left on device"]
    assert read_health(tmp_path / "health.json", NOW).status == "warning"
    assert [each.name for each in tmp_path.iterdir()] == ["health.json"]
