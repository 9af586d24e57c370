"""`mqi-hpc gpus` up to its last line: sinfo run by a real shell, and what a person and a program see."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqi_hpc.cli.gpus import print_gpus
from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.core.gpu_inventory import NodeGpus
from mqi_hpc.core.left_out import LeftOut
from mqi_hpc.core.monitoring import GPUReading, GPUStatus
from mqi_hpc.infrastructure.executors import LocalExecutor
from mqi_hpc.infrastructure.slurm.gpus import read_cluster_gpus

ROWS = "g1\x1fgpu\x1fmixed\x1fgpu:a100:4(S:0-1)\x1fgpu:a100:1(IDX:0)\x1f\n"
NODE = NodeGpus(node="g1", total=4, used=1, state="mixed", partitions=("gpu",), types={"a100": 4})


class Sinfo:
    """A sinfo of ours on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shell = LocalExecutor()

    def does(self, script: str) -> None:
        program = self.folder / "sinfo"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)

    def prints(self, text: str, then: str = "") -> None:
        (self.folder / "rows").write_text(text)
        self.does(f"cat {self.folder}/rows\n{then}")


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sinfo]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = Sinfo(tmp_path)
    yield fake
    fake.shell.close()


def test_one_sinfo_with_whole_fields(sinfo: Sinfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SINFO_FORMAT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/own.conf")
    sinfo.prints(ROWS, f'printf "%s\\n" "$@" "$(env | grep -E ^S)" >> {tmp_path}/asked')
    assert read_cluster_gpus(sinfo.shell, 30) == (NODE,)
    asked = (tmp_path / "asked").read_text().splitlines()
    fields = [f"{name}:\x1f" for name in ("NodeList", "PartitionName", "StateLong", "Gres", "GresUsed")]
    assert asked[:5] == ["-h", "-N", "-a", "-O", ",".join(fields)]
    environment = set(asked[5:])
    assert "SLURM_CONF=/etc/slurm/own.conf" in environment
    assert not [line for line in environment if line.startswith(("SINFO_", "SLURM_CLUSTERS", "SLURM_TIME"))]


def test_a_warning_stands_not_among_the_rows(sinfo: Sinfo) -> None:
    sinfo.prints(ROWS, "echo 'sinfo: warning: something' >&2")
    assert read_cluster_gpus(sinfo.shell, 30) == (NODE,)


def test_no_gpus_is_an_answer(sinfo: Sinfo) -> None:
    sinfo.prints("c1\x1fcpu\x1fidle\x1f(null)\x1f(null)\x1f\n")
    assert read_cluster_gpus(sinfo.shell, 30) == ()


def test_many_nodes_come_whole(sinfo: Sinfo) -> None:
    sinfo.prints("".join(ROWS.replace("g1", f"node{n:05d}") for n in range(5000)))
    assert len(read_cluster_gpus(sinfo.shell, 60)) == 5000


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "exit code 1: Unable to contact slurm"),
        ("exit 3", "exit code 3: it gave no reason"),
        (f"printf '{ROWS[:-1]}'; exit 1", "exit code 1"),
        ("exec sleep 60", "not within 1 s"),
        ("echo 'g1 gpu mixed gpu:4'", "not understood"),
        ("printf 'g1\\x1fgpu\\x1fmixed\\x1fgpu:4'", "not understood"),
        ("printf '\\377\\n'", "did not come whole"),
    ],
)
def test_what_is_no_answer_is_an_error_with_a_cure(sinfo: Sinfo, script: str, words: str) -> None:
    sinfo.does(script)
    with pytest.raises(ConnectionError, match=words) as caught:
        read_cluster_gpus(sinfo.shell, 1 if "sleep" in script else 60)
    assert caught.value.where
    assert caught.value.fix or "come whole" in words


# What is shown

LOCAL = GPUReading(
    gpus=(
        GPUStatus(
            index=0,
            uuid="GPU-1",
            name="H100 [x]",
            utilization=37.0,
            memory_used=1 << 30,
            memory_total=80 << 30,
            temperature=41.0,
            power=71.5,
        ),
        GPUStatus(index=1, note="GPU is lost"),
    ),
    age=0.5,
)
NODES = (
    NODE,
    NodeGpus(node="g2", total=2, used=None, state="idle", partitions=()),
    NodeGpus(node="g3", total=8, used=0, state="down*", partitions=("gpu", "low")),
)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_what_a_person_sees(capsys: pytest.CaptureFixture[str]) -> None:
    print_gpus(LOCAL, NODES, (3, 8), as_json=False)
    text = shown(capsys)
    assert "g1 4 1 3 a100: 4 mixed gpu" in text
    assert "g2 2 ? ? - idle -" in text
    assert "g3 8 0 0 - down* gpu, low" in text
    assert "cluster: 3 of 14 GPUs free; of some nodes it is not known" in text
    assert "our budget: 3 of 8 slots in use" in text
    assert "0 H100 [x] GPU-1 37 % 1024/81920 MiB 41 72" in text
    assert "1 ? ? ? % ?/? MiB ? ? GPU is lost" in text


def test_nodes_that_beams_keep_away_from(capsys: pytest.CaptureFixture[str]) -> None:
    away = LeftOut(node="g1", since=1_800_000_000.0, until=1_800_003_600.0, task_id="t", why="no [GPU]")
    print_gpus(LOCAL, NODES, (3, 8), as_json=False, left_out=(away,))
    assert "new beams keep away from g1 until 2027-01-15 09:00 UTC: no [GPU]" in shown(capsys)
    print_gpus(LOCAL, NODES, (3, 8), as_json=True, left_out=(away,))
    (told,) = json.loads(capsys.readouterr().out)["left_out"]
    assert (told["node"], told["since"], told["why"]) == ("g1", "2027-01-15T08:00:00+00:00", "no [GPU]")


def test_a_place_without_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    print_gpus(GPUReading(note="none: Driver Not Loaded"), (), (0, None), as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "cluster: Slurm knows of no GPU",
        "our budget: no limit is set (resources.gpu_count)",
        "this machine: none: Driver Not Loaded",
    ]


def test_a_cluster_that_was_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    print_gpus(GPUReading(note="none: x"), None, (0, 4), as_json=False)
    assert "cluster" not in capsys.readouterr().out


def test_all_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_gpus(LOCAL, NODES[:1], (0, 4), as_json=False)
    assert "cluster: 3 of 4 GPUs free our budget" in shown(capsys)


def test_what_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    print_gpus(LOCAL, NODES, (3, None), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["cluster"][0] == {
        "node": "g1",
        "total": 4,
        "used": 1,
        "free": 3,
        "usable": True,
        "state": "mixed",
        "partitions": ["gpu"],
        "types": {"a100": 4},
        "shared": False,
    }
    assert [node["free"] for node in told["cluster"]] == [3, None, 0]
    assert told["budget"] == {"used": 3, "total": None}
    assert told["local"]["note"] == ""
    assert [gpu["uuid"] for gpu in told["local"]["gpus"]] == ["GPU-1", None]
    print_gpus(LOCAL, None, (3, 8), as_json=True)
    assert json.loads(capsys.readouterr().out)["cluster"] is None
