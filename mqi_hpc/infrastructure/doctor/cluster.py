"""One look at the cluster, in one command: its answers, taken apart and judged."""

from __future__ import annotations

import base64
import binascii
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence

from mqi_hpc.core import slurm_checks as checks
from mqi_hpc.core.chain_plan import StageResources, default_comment, plan_calls
from mqi_hpc.core.diagnosis import (
    Finding,
    Said,
    failure,
    judge_clock,
    judge_shell,
    judge_tools,
    skipped,
)
from mqi_hpc.core.errors import MQIError
from mqi_hpc.core.models import STAGES, Submission
from mqi_hpc.core.slurm_facts import SINFO_FORMAT, StageWish, parse_config
from mqi_hpc.core.workspace_facts import WorkspaceWish, judge_workspace
from mqi_hpc.infrastructure.config import AppConfig
from mqi_hpc.infrastructure.config.slurm import SlurmStageConfig
from mqi_hpc.infrastructure.doctor.scripts import LOOK, TRIAL
from mqi_hpc.infrastructure.executors.script import MARK, Answer, decode_text, new_nonce, parse, run_script
from mqi_hpc.infrastructure.executors.shell import Shell

_COMMAND_SECONDS = 20
_TEST_BEAMS = 4
_GIGABYTE = 1_000_000_000
_NO_SHELL = (
    "Try `ssh HOST true` by hand: bash must be there, and the login profile of the account must let commands"
    " through"
)

LOOK_SECONDS = 300
"""Longest time of the look: more than its commands take, one by one, on a cluster that answers at all."""


def look_at_cluster(
    shell: Shell, config: AppConfig, instance: str | None, *, seconds: float = LOOK_SECONDS
) -> list[Finding]:
    """Return what one command on the cluster found; it leaves nothing behind there.

    What it finds is not raised, a broken link neither; ConfigurationError where the options of a stage
    cannot be made.
    """
    nonce, heard = new_nonce(), _Heard()
    arguments = [str(_COMMAND_SECONDS), config.paths.remote_workspace, instance or "", SINFO_FORMAT]
    broken: MQIError | None = None
    try:
        run_script(
            shell,
            _tests(config) + LOOK,
            arguments,
            timeout=seconds,
            control=True,
            nonce=nonce,
            sink=heard,
        )
    except MQIError as error:
        # What was told until then stands: each answer is whole by itself.
        broken = error
    said = _answers(bytes(heard.bytes), nonce)
    if not said:
        why = str(broken) if broken else "a command ran, and not a word of it came back"
        return [failure("login shell", why, _NO_SHELL)]
    wish = WorkspaceWish(
        path=config.paths.remote_workspace,
        instance=instance,
        min_free_bytes=config.resources.min_disk_space_gb * _GIGABYTE,
    )
    return [
        judge_shell(_noise(bytes(heard.bytes), nonce)),
        judge_clock(heard.begun, heard.dated or time.time(), said.get("DATE", _NOTHING)),
        judge_tools(said.get("TOOLS", _NOTHING)),
        *judge_slurm(said, config),
        *judge_workspace(said.get("WORKSPACE"), wish),
    ]


def sbatch_options(
    config: AppConfig, submissions: Sequence[Submission] = (), folder: str = ""
) -> dict[str, tuple[str, ...]]:
    """Return each stage's sbatch options as its jobs have them, but hold and dependency.

    They are those of `submissions` in a job's `folder`, else of a made-up job of all stages. Raises
    ConfigurationError where the settings make none.
    """
    slurm = config.slurm
    resources = {
        stage: StageResources(
            partition=asked.partition or slurm.partition,
            time=asked.time,
            memory=asked.memory,
            cpus=asked.cpus,
            gres=slurm.gres if stage == "beams" else None,
            extra=asked.extra,
        )
        for stage, asked in stages(config).items()
    }
    made_up = [
        Submission(
            stage=stage,
            name=f"mqi-check-{stage}",
            indices=tuple(range(_TEST_BEAMS)) if stage == "beams" else (0,),
        )
        for stage in STAGES
    ]
    calls = plan_calls(
        submissions or made_up,
        resources,
        folder=folder or config.paths.remote_workspace,
        comment=slurm.comment or default_comment(config.app.name, config.app.environment),
        account=slurm.account,
        qos=slurm.qos,
        gpu_count=config.resources.gpu_count,
    )
    return {call.stage: tuple(option for option in call.options if option != "--hold") for call in calls}


def try_submissions(
    shell: Shell,
    config: AppConfig,
    submissions: Sequence[Submission],
    folder: str,
    scripts: Mapping[str, str],
) -> dict[str, Said]:
    """Return, by stage, what `sbatch --test-only` says of a job's submissions; nothing is submitted or kept.

    `folder` is the job's, `scripts` are its batch scripts by stage. Raises ConnectionError where the command
    does not come to its end.
    """
    lines = []
    for stage, options in sbatch_options(config, submissions, folder).items():
        lines += [f"input={shlex.quote(scripts[stage])}", _test(stage, options)]
    answers = run_script(
        shell,
        "\n".join(["tests() {", *lines, "}", TRIAL]),
        [str(_COMMAND_SECONDS)],
        timeout=(len(lines) + 1) * _COMMAND_SECONDS,
        control=True,
    )
    said = _said(answers)
    return {s.stage: said.get(f"TEST-{s.stage}", _NOTHING) for s in submissions}


def _test(stage: str, options: Sequence[str]) -> str:
    return shlex.join(["ask", f"TEST-{stage}", "sbatch", "--test-only", *options])


def stages(config: AppConfig) -> dict[str, SlurmStageConfig]:
    """Return what is configured for each stage."""
    asked = config.slurm.stages
    return {"interpret": asked.interpret, "beams": asked.beams, "convert": asked.convert}


def judge_slurm(said: Mapping[str, Said], config: AppConfig) -> list[Finding]:
    """Return what the answers say of Slurm; where its controller is away, the rest is skipped."""
    slurm = config.slurm
    known = said.get("CONFIG", _NOTHING)
    controller = checks.judge_controller(said.get("CONFIG"))
    findings = [
        checks.judge_commands(said.get("COMMANDS", _NOTHING)),
        checks.judge_version(said.get("VERSION", _NOTHING)),
        controller,
    ]
    names = [
        "accounting",
        "association",
        *(f"{what} ({s})" for what in ("partition", "sbatch") for s in STAGES),
    ]
    if controller.cure:
        return [*findings, *(skipped(name, "slurmctld does not answer") for name in names)]
    settings = parse_config(known.out)
    user = said.get("USER", _NOTHING).out.strip() or "the user"
    wishes = [
        StageWish(
            stage=stage,
            partition=asked.partition or slurm.partition,
            time=asked.time,
            gres=slurm.gres if stage == "beams" else None,
        )
        for stage, asked in stages(config).items()
    ]
    return [
        *findings,
        checks.judge_slurm_clock(said.get("DATE", _NOTHING), known),
        *checks.judge_config(
            settings,
            poll_max=config.processing.poll_max_seconds,
            accounting_off=slurm.accounting == "off",
        ),
        checks.judge_accounting(said.get("ACCOUNTING", _NOTHING), settings, slurm.accounting),
        checks.judge_association(said.get("ASSOCIATION", _NOTHING), settings, user, slurm.account),
        *checks.judge_partitions(said.get("PARTITIONS", _NOTHING), wishes),
        *(checks.judge_test(stage, said.get(f"TEST-{stage}", _NOTHING)) for stage in STAGES),
    ]


_NOTHING = Said(1, "", "it was not heard of: the look was cut short")


class _Heard:
    """Keeps what comes, and when the cluster's time came."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.begun = time.time()
        self.dated: float | None = None

    def __call__(self, chunk: bytes) -> None:
        self.bytes += chunk
        if self.dated is None and b" DATE " in self.bytes:
            self.dated = time.time()


def _tests(config: AppConfig) -> str:
    lines = [_test(stage, options) for stage, options in sbatch_options(config).items()]
    return "\n".join(["tests() {", *lines, "}", ""])


def _answers(heard: bytes, nonce: str) -> dict[str, Said]:
    """Return each command's answer; one that did not come whole is none."""
    return _said(parse(heard[: heard.rfind(b"\n") + 1], nonce))


def _said(answers: Iterable[Answer]) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for answer in answers:
        if len(answer.rest) == 3 and answer.rest[0].isdecimal():
            code, out, err = answer.rest
            try:
                text = base64.b64decode(out, validate=True).decode("utf-8", "replace")
            except (binascii.Error, ValueError):
                continue
            said[answer.word] = Said(int(code), text, decode_text(err))
    return said


def _noise(heard: bytes, nonce: str) -> bytes:
    mark = MARK + nonce.encode()
    return b"\n".join(line for line in heard.split(b"\n") if line and not line.startswith(mark))
