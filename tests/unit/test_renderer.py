"""What is rendered for a job: golden texts for the reader, and refusals of what would be misread."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.engine_input import check_engine_input
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.chain import decode_chain
from tests.support.bench import make_case

GOLDEN = Path(__file__).parent / "golden"
CONFIG = """\
paths: {local_logdata: /d, remote_workspace: /scratch/me/mqi}
ssh: {host: h}
resources: {gpu_count: 2}
slurm:
  partition: gpu
  account: acc
  prologue: "module load cuda"
  stages: {interpret: {partition: cpu}, beams: {time: "02:00:00", extra: ["--constraint=a100"]}}
moqui: {grid: {size: [50, 60, 70], spacing: [2, 3, 1], position: [-50, -90, -60]}}
"""


def renderer(extra: str = "", base: Path = Path("/c/config.yaml")) -> Renderer:
    return Renderer(ConfigLoader().parse(CONFIG + extra, base), b"archive")


def files(made: Renderer, folder: str = "/scratch/me/mqi/abcdefghijkl/j01") -> dict[str, bytes]:
    case = make_case(3)
    request = RenderRequest(
        case=case,
        job="j01",
        job_folder=folder,
        submissions=plan_submissions(case.instance, case.case_id, 1, case.beams),
        beams=case.beams,
        audit_head="",
    )
    return made.job_files(request)


@pytest.mark.parametrize("name", ["interpret.sbatch", "beams.sbatch", "beam_3.in", "submit.sh"])
def test_texts_are_as_they_were(name: str) -> None:
    text = files(renderer())[name].decode()
    golden = GOLDEN / name
    if os.environ.get("MQI_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_everything_of_a_job_is_there_and_the_same_each_time() -> None:
    first = files(renderer())
    assert sorted(first) == [
        "beam_2.in", "beam_3.in", "beam_4.in", "beams.sbatch", "chain.json", "convert.sbatch",
        "interpret.sbatch", "stages.pyz", "submit.sh",
    ]  # fmt: skip
    assert files(renderer()) == first
    for name, content in first.items():
        assert name == "stages.pyz" or b"\r" not in content


def test_chain_json_says_what_was_rendered() -> None:
    made = files(renderer())
    chain = decode_chain(made["chain.json"].decode())
    for submission in chain.submissions:
        script = made[f"{submission.stage}.sbatch"]
        assert submission.script_digest == hashlib.sha256(script).hexdigest()
    assert chain.stages_digest == hashlib.sha256(made["stages.pyz"]).hexdigest()
    assert [beam.log_folder for beam in chain.beams] == ["G0", "G1", "G2"]
    assert chain.settings.grid.size == (50, 60, 70)
    assert chain.settings.calibration.machine == "G2"


@pytest.mark.parametrize("name", ["interpret.sbatch", "beams.sbatch", "convert.sbatch", "submit.sh"])
@pytest.mark.parametrize("folder", ["/w/j01", '/w/it\'s "odd" $(x) `y`/j01'])
def test_scripts_are_bash_and_quote_what_they_are_given(tmp_path: Path, name: str, folder: str) -> None:
    script = tmp_path / name
    script.write_bytes(files(renderer(), folder)[name])
    assert script.read_bytes().startswith(b"#!/bin/bash\n")
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stage_refuses_another_archive(tmp_path: Path) -> None:
    script = tmp_path / "interpret.sbatch"
    script.write_bytes(
        files(renderer('stages: {python: "true"}\n'), str(tmp_path))["interpret.sbatch"].replace(
            b"module load cuda", b":"
        )
    )
    (tmp_path / "stages.pyz").write_bytes(b"archive")
    assert subprocess.run(["bash", script], check=False).returncode == 0
    (tmp_path / "stages.pyz").write_bytes(b"another")
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "not the one this job was made with" in done.stderr


def test_a_site_replaces_a_template_by_name(tmp_path: Path) -> None:
    (tmp_path / "interpret.sbatch.j2").write_text("#!/bin/bash\n# ours\n{% include 'prologue.j2' %}\n")
    extra = f"  templates: {tmp_path}\n"
    made = files(
        Renderer(ConfigLoader().parse(CONFIG.replace("moqui:", f"{extra}moqui:"), tmp_path / "c"), b"")
    )
    assert b"# ours\numask 077\n" in made["interpret.sbatch"]
    assert b"# ours" not in made["convert.sbatch"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("#!/bin/sh\n{{ nonsense }}", r"interpret\.sbatch\.j2:2: .*'nonsense' is undefined"),
        ("#!/bin/sh\n\n{{ folder.x.y }}", r"interpret\.sbatch\.j2:3: .*no attribute 'x'"),
        ("{{ 1 / 0 }}", r"interpret\.sbatch\.j2:1: .*division by zero"),
        ("{{ folder | nofilter }}", r"interpret\.sbatch\.j2:1: .*No filter named 'nofilter'"),
        ("line\n{% if %}", r"interpret\.sbatch\.j2:2"),
        ("{% include 'gone.j2' %}", "there is no gone.j2"),
        ("", "begin with #!"),
        ("echo", r"interpret\.sbatch:1: .*begin with #!"),
        ("#!/bin/sh\n#SBATCH --mail-type=FAIL --arr=1-2", r"interpret\.sbatch:2: --array is set by this"),
        ("#!/bin/sh\n#SBATCH -N 1 -d singleton", "--dependency is set by this program"),
        ("#!/bin/sh\n#SBATCH hetjob", "one component"),
        ("#!/bin/sh\n#SBATCH --x='", "No closing quotation"),
        ("#!/bin/sh\n#PBS -l nodes=2", "sbatch reads '#PBS -l nodes=2' too"),
        ("a\\0b\x00", "NUL"),
    ],
)
def test_a_sites_broken_template_is_named(tmp_path: Path, template: str, said: str) -> None:
    (tmp_path / "interpret.sbatch.j2").write_text(template)
    config = ConfigLoader().parse(
        CONFIG.replace("moqui:", f"  templates: {tmp_path}\nmoqui:"), tmp_path / "c"
    )
    with pytest.raises(ConfigurationError, match=said):
        files(Renderer(config, b""))


def test_a_site_may_set_other_options_and_have_them_in_its_text(tmp_path: Path) -> None:
    options = "#SBATCH --mail-type=FAIL -w node1 # not -d\n##SBATCH --array=1\n"
    text = f"#!/bin/sh\n\n# ours\n{options}true\n#SBATCH -d 3\n"
    (tmp_path / "interpret.sbatch.j2").write_text(text)
    config = ConfigLoader().parse(
        CONFIG.replace("moqui:", f"  templates: {tmp_path}\nmoqui:"), tmp_path / "c"
    )
    assert files(Renderer(config, b""))["interpret.sbatch"].decode() == text


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "interpret.sbatch.j2").write_bytes(b"#!/bin/sh\n\xff")
    config = ConfigLoader().parse(
        CONFIG.replace("moqui:", f"  templates: {tmp_path}\nmoqui:"), tmp_path / "c"
    )
    with pytest.raises(ConfigurationError, match=r"interpret\.sbatch\.j2: template error: .*utf-8"):
        files(Renderer(config, b""))


def test_a_template_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = ConfigLoader().parse(CONFIG.replace("moqui:", "  templates: gone\nmoqui:"), tmp_path / "c")
    with pytest.raises(ConfigurationError, match=r"slurm\.templates: .*gone is no folder"):
        Renderer(config, b"")


def test_a_machine_without_calibration_is_named() -> None:
    machine = "{x_offset: 1, y_offset: 1, x_gain: 1, y_gain: 1, gantry_number: 1}"
    with pytest.raises(ConfigurationError, match=r"G2, which machines does not list \(G9\)"):
        files(renderer(f"machines: {{G9: {machine}}}\n"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Key a#b", "comment"),
        ("Key", "Key value"),
        ("Key  ", "Key value"),
        ("   ", "Key value"),
        ("Key a\tb", "control character"),
        ("gpuid 3", "twice"),
    ],
)
def test_engine_input_that_would_be_misread_is_refused(line: str, said: str) -> None:
    check_engine_input("GPUID 0\n\nOther x y\n", "beam_1.in")
    with pytest.raises(ConfigurationError, match=said) as caught:
        check_engine_input(f"GPUID 0\n{line}\n", "beam_1.in")
    assert "beam_1.in:2" in str(caught.value)


def test_more_lines_of_engine_input() -> None:
    extra = CONFIG.replace("moqui: {", 'moqui: {extra: {Foo: "bar baz"}, ')
    made = files(Renderer(ConfigLoader().parse(extra, Path("/c")), b""))
    assert b"\nFoo bar baz\n" in made["beam_2.in"]
    clash = CONFIG.replace("moqui: {", 'moqui: {extra: {gpuid: "1"}, ')
    with pytest.raises(ConfigurationError, match="twice"):
        files(Renderer(ConfigLoader().parse(clash, Path("/c")), b""))


def test_the_archive_carries_records_and_stages_alone() -> None:
    archive = build_stages()
    assert archive == build_stages()
    assert b"mqi_hpc/stages/fence.py" in archive
    assert b"paramiko" not in archive
