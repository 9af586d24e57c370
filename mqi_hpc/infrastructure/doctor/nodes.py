"""Small jobs that look at compute nodes where the stages would run: bounded in time, none left behind."""

from __future__ import annotations

import secrets
import shlex

from mqi_hpc.core.diagnosis import Finding, failure
from mqi_hpc.core.errors import MQIError
from mqi_hpc.core.models import STAGES
from mqi_hpc.core.node_facts import NodeSaid, NodeWish, judge_node
from mqi_hpc.infrastructure.config import AppConfig
from mqi_hpc.infrastructure.doctor.cluster import sbatch_options, stages
from mqi_hpc.infrastructure.doctor.scripts import NODE_JOB, NODES
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import Shell

PATIENCE_SECONDS = 60
"""So long a node may take to answer; then the queue counts as busy."""
_AROUND_SECONDS = 120
# What a probe asks for is small; a site's own options (a constraint, a reservation) stay.
_SMALL = ("--time=5", "--mem=500M", "--cpus-per-task=1", "--deadline=now+30minutes")
_OWN = (
    "--parsable",
    "--job-name=",
    "--chdir=",
    "--output=",
    "--array=",
    "--time=",
    "--mem=",
    "--cpus-per-task=",
)


def look_at_nodes(shell: Shell, config: AppConfig, *, seconds: int = PATIENCE_SECONDS) -> list[Finding]:
    """Return what jobs on compute nodes found within `seconds`; they are cancelled where they have not ended.

    What goes wrong is a finding, never raised.
    """
    token = secrets.token_hex(8)
    wishes = _wishes(config, token)
    calls = [
        shlex.join(["launch", f"mqi-check-{token}-{index}", _job(config, wish), *_options(config, wish)])
        for index, wish in enumerate(wishes)
    ]
    script = "\n".join(["jobs() {", *calls, "}", NODES])
    arguments = [config.paths.remote_workspace, token, str(seconds)]
    try:
        answers = run_script(shell, script, arguments, timeout=seconds + _AROUND_SECONDS, control=True)
    except MQIError as error:
        cure = error.fix or f"Run doctor again; `squeue -n mqi-check-{token}-0` shows whether a job was left"
        return [failure(wish.check, str(error.what), cure) for wish in wishes]
    said = {
        answer.rest[0]: _said(answer) for answer in answers if answer.word == "JOB" and len(answer.rest) == 4
    }
    return [
        finding for index, wish in enumerate(wishes) for finding in judge_node(said.get(str(index)), wish)
    ]


def _wishes(config: AppConfig, token: str) -> list[NodeWish]:
    """Return one job for all stages that ask for the same kind of node."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for stage in STAGES:
        asked = stages(config)[stage]
        kind = (asked.partition or config.slurm.partition, asked.extra, stage == "beams")
        alike.setdefault(kind, []).append(stage)
    return [
        NodeWish(
            stages=tuple(names),
            python=config.stages.python,
            engine=config.stages.engine[0] if "beams" in names else None,
            gpu="beams" in names and config.stages.require_gpu,
            token=token,
        )
        for names in alike.values()
    ]


def _options(config: AppConfig, wish: NodeWish) -> list[str]:
    options = sbatch_options(config)[wish.stages[0]]
    return [*(one for one in options if not one.startswith(_OWN)), *_SMALL]


def _job(config: AppConfig, wish: NodeWish) -> str:
    filled = {
        "@PROLOGUE@": config.slurm.prologue,
        "@PYTHON@": shlex.quote(wish.python),
        "@ENGINE@": shlex.quote(wish.engine or ""),
        "@GPU@": "yes" if wish.gpu else "no",
    }
    text = NODE_JOB
    for mark, value in filled.items():
        text = text.replace(mark, value)
    return text


def _said(answer: Answer) -> NodeSaid:
    _, state, detail, told = answer.rest
    return NodeSaid(state=state, detail=decode_text(detail), answer=decode_text(told))
