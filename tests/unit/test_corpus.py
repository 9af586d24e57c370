"""Real text of real clusters: all of it is accepted, and says what another witness says."""

from __future__ import annotations

import pytest

from mqi_hpc.core.gpu_inventory import parse_nodes
from mqi_hpc.core.observation import Row, newest
from mqi_hpc.core.readings import Accounting
from mqi_hpc.core.slurm_facts import parse_config, parse_partitions
from mqi_hpc.core.submission import parse_receipt
from mqi_hpc.domain.evidence import Evidence, read_evidence
from mqi_hpc.records.result import decode_record
from tests.corpus.sample import HOME, VERSIONS, Fact, Sample, names, read

BOTH = ("22.05", "24.11")


def seen(version: str, name: str) -> tuple[Evidence, Sample]:
    text, sample = read(version, name)
    asked = " BEGIN sacct\n" in text
    return read_evidence(text, sample.nonce, asked=asked, accounting="auto"), sample


def tasks_of(rows: tuple[Row, ...]) -> dict[tuple[int, int], list[Row]]:
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.job, -1 if row.task is None else row.task), []).append(row)
    return found


@pytest.mark.parametrize("version", BOTH)
def test_each_version_has_every_sample(version: str) -> None:
    assert {name for at, name in names() if at == version} == {
        "waiting", "completing", "all-cancelled", "ended", "ended-later", "taken-away", "preempted",
        "slurmdbd-stopped", "slurmctld-frozen", "slurmctld-stopped", "chain-begun", "chain-ended",
    }  # fmt: skip


@pytest.mark.parametrize(("version", "name"), names())
def test_the_queue_is_what_scontrol_shows(version: str, name: str) -> None:
    evidence, sample = seen(version, name)
    if not sample.queue:
        assert evidence.queue is None
        assert any(note.startswith("squeue: exit code") for note in evidence.notes)
        return
    assert evidence.queue is not None
    if not sample.facts:
        return
    found = tasks_of(evidence.queue)
    assert all(len(rows) == 1 for rows in found.values())
    shown = {(f.job, f.task): (f.name, f.word, f.reason, f.submit, f.node) for f in sample.facts}
    # scontrol writes a reason's blanks as underscores.
    assert {
        task: (row.name, row.word, row.reason.replace(" ", "_"), row.submit, row.node)
        for task, (row,) in found.items()
    } == shown


@pytest.mark.parametrize(("version", "name"), names())
def test_accounting_ends_with_what_scontrol_shows(version: str, name: str) -> None:
    evidence, sample = seen(version, name)
    if not sample.accounting:
        assert evidence.accounting is Accounting.DOWN
        assert any(note.startswith("sacct: exit code") for note in evidence.notes)
        return
    assert evidence.accounting is Accounting.GOOD, evidence.notes
    found = tasks_of(evidence.accounted)
    facts = {(fact.job, fact.task): fact for fact in sample.facts}
    for task, rows in found.items():
        last = newest(rows)
        if last is not None and task in facts:
            agree(last, facts[task])
    for job, task, word in sample.lives:
        older = [row.word for row in found[(job, task)]]
        assert word in older[:-1], f"job {job}_{task}: accounting shows {older}"


def agree(row: Row, fact: Fact) -> None:
    """One task, as accounting and as scontrol know it."""
    assert row.name == fact.name
    assert row.submit == fact.submit
    if fact.word == "COMPLETING":
        assert row.word == "CANCELLED"
        return
    assert row.word == fact.word
    assert row.by_uid == (None if fact.by_uid == -1 else fact.by_uid)
    if row.word in ("COMPLETED", "FAILED"):
        code, _, signal = fact.exit_code.partition(":")
        # Up to 25.05 sacct takes 128 off a code from 128 on.
        shown = {str(int(code)), str(int(code) - 128)} if int(code) >= 128 else {code}
        assert row.exit_code in {f"{one}:{signal}" for one in shown}


@pytest.mark.parametrize("version", BOTH)
def test_a_chain_of_ours_leaves_receipts_status_lines_and_records_that_are_read(version: str) -> None:
    evidence, _ = seen(version, "chain-ended")
    receipts = evidence.receipts("job")
    assert receipts is not None
    ids = {stage: parse_receipt(receipts[stage]).id for stage in ("interpret", "beams", "convert")}
    assert receipts["claimed"].split() == ["beams-0", "beams-1", "beams-2", "convert-0", "interpret-0"]
    status = evidence.status("job")
    assert status is not None
    assert {line.exit_code for line in status.values()} == {0}
    for ref in ("interpret", "beam-0", "beam-1", "beam-2", "convert"):
        section, listing = evidence.record(ref), evidence.listing(ref)
        assert section is not None
        assert listing is not None
        record = decode_record(section.text)
        assert record.run.array_id == ids[{"b": "beams"}.get(ref[0], ref)]
        assert {file.path: file.bytes for file in record.files}.items() <= listing.items()
    assert evidence.free_bytes()


@pytest.mark.parametrize("version", [v for v in VERSIONS if (HOME / v / "sinfo-nodes.raw").exists()])
def test_what_sinfo_and_scontrol_say_of_the_cluster_is_read(version: str) -> None:
    def raw(name: str) -> str:
        return (HOME / version / f"{name}.raw").read_text("utf-8")

    nodes = {node.node: node for node in parse_nodes(raw("sinfo-nodes"))}
    assert {name: (n.total, n.used, n.free) for name, n in nodes.items()} == {
        "g1": (4, 2, 2),
        "g2": (4, 0, 0),
    }
    partitions = parse_partitions(raw("sinfo-partitions"))
    assert {name: p.default for name, p in partitions.items()} == {"gpu": True, "low": False, "cpu": False}
    away = {name: sum(g.nodes for g in p.groups if g.away) for name, p in partitions.items()}
    assert (away["gpu"], away["low"]) == (1, 1)
    config = parse_config(raw("scontrol-config"))
    assert config["SLURM_VERSION"].startswith(version)
    assert (config["MinJobAge"], config["MaxArraySize"]) == ("3600 sec", "1001")
