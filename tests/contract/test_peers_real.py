"""What users of comparable systems suffered, where only a real Slurm can show that we do not: R5 and R7."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.controllers.container import Container
from mqi_hpc.infrastructure.intake import write_sample_case
from mqi_hpc.main import run
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster

WORK = "/home/mqi/peers"


@pytest.fixture(autouse=True)
def quiet(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.reset()
    cluster.ssh(f"rm -rf {WORK} .bash_profile peers.env")


def config_of(cluster: Cluster, home: Path, **changes: Any) -> Path:
    return cluster.write_config(home, paths={"remote_workspace": WORK}, **changes)


def rehearsed(
    cluster: Cluster, home: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and stages of `submit --dry-run` for a sample case of three beams."""
    config, folder = config_of(cluster, home, **changes), home / "cases" / "P001"
    if not folder.exists():
        write_sample_case(folder, beams=3, layers=2)
    code = run(["--config", str(config), "submit", str(folder), "--dry-run", "--json"])
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    return code, {one["stage"]: one for one in case["stages"]}


def test_r07_a_dry_run_asks_the_real_slurm_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stages = rehearsed(cluster, tmp_path, capsys)
    assert {one["cure"] for one in stages.values()} == {""}, stages
    assert code == 0
    assert all("to start at" in one["found"] for one in stages.values()), stages
    assert stages["beams"]["tasks"] == 3
    assert cluster.root("squeue -h -u mqi").stdout == ""
    assert cluster.ssh(f"test -e {WORK}").returncode == 1


@pytest.mark.parametrize(
    ("wrong", "refused", "words"),
    [
        ({"gres": "gpu:99"}, {"beams"}, "node configuration is not available"),
        ({"account": "nobody"}, {"interpret", "beams", "convert"}, "Invalid account"),
        ({"partition": "gpu", "stages": {"beams": {"partition": "no-such"}}}, {"beams"}, "invalid partition"),
    ],
)
def test_r07_what_the_real_slurm_would_refuse_is_told_before(
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, Any],
    refused: set[str],
    words: str,
) -> None:
    code, stages = rehearsed(cluster, tmp_path, capsys, slurm=wrong)
    assert {stage for stage, one in stages.items() if one["cure"]} == refused, stages
    assert all(words.lower() in stages[stage]["found"].lower() for stage in refused), stages
    assert code == 1
    assert cluster.root("squeue -h -u mqi").stdout == ""


def test_r05_what_a_login_exports_for_sbatch_or_srun_does_not_reach_a_stage(
    cluster: Cluster, tmp_path: Path
) -> None:
    """`--export=NONE` brings the account's login environment on the node: what would mislead is unset."""
    write_sample_case(tmp_path / "cases" / "P001", beams=1, layers=2)
    container = Container.open(config_of(cluster, tmp_path), None)
    text = container.preview(str(tmp_path / "cases" / "P001"))["beams.sbatch"].decode()
    begin = text.partition("set -u")[0].removeprefix("#!/bin/bash\n")
    exports = ("SLURM_CPU_BIND=quiet,mask_cpu:0x1", "SBATCH_REQUEUE=1", "OF_THE_SITE=kept")
    cluster.ssh("cat >.bash_profile", "".join(f"export {one}\n" for one in exports), check=True)
    line = "SLURM_CPU_BIND=verbose SBATCH_EXPORT=ALL OF_THE_LOGIN_NODE=1 "
    script = f"{begin}env >$HOME/peers.env.part; mv $HOME/peers.env.part $HOME/peers.env\n"
    cluster.ssh(
        f"{line} sbatch --parsable --export=NONE --partition=cpu --chdir=/home/mqi --output=/dev/null",
        f"#!/bin/bash\n{script}",
        check=True,
    )
    wait_until(lambda: cluster.ssh("test -e peers.env").returncode == 0, 120, "the job's environment")
    pairs = (one.split("=", 1) for one in cluster.ssh("cat peers.env").stdout.splitlines() if "=" in one)
    seen = dict(pairs)
    assert "SLURM_JOB_ID" in seen
    assert seen["SLURM_EXPORT_ENV"] == "ALL"
    assert not {"SLURM_CPU_BIND", "SBATCH_REQUEUE", "SBATCH_EXPORT", "OF_THE_LOGIN_NODE"} & set(seen)
