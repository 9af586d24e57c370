"""What is rendered for a job: golden texts for the reader, and refusals of what would be misread."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import STAGES
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.slurm.archive import build_stages
from mqi_hpc.infrastructure.slurm.engine_input import check_engine_input
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.chain import Interpreted, decode_chain
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


def again(*computed: int, **changes: Any) -> RenderRequest:
    """A request for j03, which computes some of three beams; j01 and j02 may still compute the others."""
    case = make_case(3)
    beams = tuple(case.beams[index] for index in computed)
    stages = STAGES[1:] if computed else STAGES[2:]
    request = RenderRequest(
        case=case,
        job="j03",
        job_folder="/scratch/me/mqi/abcdefghijkl/j03",
        submissions=plan_submissions(case.instance, case.case_id, 3, beams, stages),
        beams=beams,
        audit_head="",
        sources={index: job for index, job in ((0, "j01"), (2, "j02")) if index not in computed},
        interpreted=("j01", "a" * 64),
        waits_for=("j01", "j02"),
    )
    return replace(request, **changes)


@pytest.mark.parametrize(
    ("name", "golden_name", "computed"),
    [
        *((name, name, None) for name in ("interpret.sbatch", "beams.sbatch", "beam_3.in", "submit.sh")),
        ("submit.sh", "submit-beams.sh", (1,)),
        ("submit.sh", "submit-convert.sh", ()),
    ],
)
def test_texts_are_as_they_were(name: str, golden_name: str, computed: tuple[int, ...] | None) -> None:
    made = files(renderer()) if computed is None else renderer().job_files(again(*computed))
    text, golden = made[name].decode(), GOLDEN / golden_name
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


def test_a_job_has_the_files_of_its_own_stages_and_beams() -> None:
    assert sorted(renderer().job_files(again(1))) == [
        "beam_3.in", "beams.sbatch", "chain.json", "convert.sbatch", "stages.pyz", "submit.sh",
    ]  # fmt: skip
    assert sorted(renderer().job_files(again())) == [
        "chain.json", "convert.sbatch", "stages.pyz", "submit.sh",
    ]  # fmt: skip


def test_chain_json_says_what_is_taken_from_where() -> None:
    chain = decode_chain(renderer().job_files(again(1))["chain.json"].decode())
    assert (chain.job, chain.stages, chain.computed) == ("j03", STAGES[1:], (1,))
    assert [beam.source_job for beam in chain.beams] == ["j01", None, "j02"]
    assert chain.interpreted == Interpreted("j01", "a" * 64)
    assert [s.dependency for s in chain.submissions] == [None, "afterany:beams:j01/beams:j02/beams"]
    chain = decode_chain(renderer().job_files(again(waits_for=()))["chain.json"].decode())
    assert (chain.stages, chain.computed) == (STAGES[2:], ())
    # Of beam 1 no dose is to be expected.
    assert [chain.dose_job(beam) for beam in chain.beams] == ["j01", None, "j02"]
    assert [s.dependency for s in chain.submissions] == [None]
    whole = decode_chain(files(renderer())["chain.json"].decode())
    assert [s.dependency for s in whole.submissions] == [None, "afterok:interpret", "afterany:beams"]


@pytest.mark.parametrize(
    ("computed", "changes", "said"),
    [
        ((1,), {"beams": make_case(3).beams}, r"its array has the indices \[1\], its beams are others"),
        ((), {"beams": make_case(3).beams[:1]}, r"its array has the indices \[\], its beams are others"),
        ((1,), {"sources": {1: "j01"}}, "computed here and taken from j01 too"),
        ((1,), {"sources": {0: "j03"}}, "taken from here and not computed here"),
        ((1,), {"sources": {0: "j3"}}, "'j3' is no job"),
        ((1,), {"sources": {3: "j01"}}, r"the case has no beams of the indices \[3\]"),
        ((1,), {"interpreted": None}, "interpret is not among the submissions of j03"),
        ((), {"interpreted": ("j01", "xyz")}, "record_digest"),
        ((), {"interpreted": ("j03", "a" * 64)}, "this job's own has none yet"),
        ((1,), {"waits_for": ("j03",)}, "it would wait for j03"),
        ((1,), {"waits_for": ("j01", "../x")}, r"it would wait for j01, \.\./x"),
        ((), {"job": "j04"}, "is named"),
    ],
)
def test_a_request_that_contradicts_itself_is_not_rendered(
    computed: tuple[int, ...], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProcessingError, match=rf"(?s)contradicts itself: .*{said}.*bug of this program"):
        renderer().job_files(again(*computed, **changes))


@pytest.mark.parametrize("name", ["beams.sbatch", "convert.sbatch", "submit.sh"])
def test_scripts_of_a_later_job_are_bash(tmp_path: Path, name: str) -> None:
    script = tmp_path / name
    script.write_bytes(renderer().job_files(again(1, job_folder='/w/it\'s "odd" $(x) `y`/j03'))[name])
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
