"""All text of a job, rendered here: chain.json, scripts, engine input, submit.sh; and the poll script."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import jinja2

from mqi_hpc.core.chain_plan import StageCall, StageResources, default_comment, plan_calls
from mqi_hpc.core.effects import Observe
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import Beam, Case
from mqi_hpc.core.observation import FIELD, SACCT_FIELDS, SQUEUE_FORMAT
from mqi_hpc.core.slurm_sizes import memory_text, time_text
from mqi_hpc.infrastructure.config import AppConfig, MachineConfig
from mqi_hpc.infrastructure.executors.script import CLEAN
from mqi_hpc.infrastructure.slurm.batch_script import check_batch_script
from mqi_hpc.infrastructure.slurm.engine_input import check_engine_input
from mqi_hpc.records.chain import (
    Calibration,
    Chain,
    ChainBeam,
    ChainSubmission,
    Grid,
    Interpreted,
    Settings,
    decode_chain,
    encode_chain,
)
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import (
    CHAIN,
    STAGES_ARCHIVE,
    SUBMIT_SCRIPT,
    engine_input,
    is_job,
    safe_name,
    script,
    submission_name,
)

_Source = tuple[str, str | None, Callable[[], bool] | None]
"""A template as Jinja's loaders give it: text, file, and whether it is still the newest (None: it is)."""
_SECTION_CAP = 4 * 1024 * 1024
"""Most bytes of one section of a poll."""


# What an expression of a site's template may end in, and a file that cannot be read.
_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


class Renderer:
    """IRenderer on Jinja templates: ours, each of which a site may replace by name (slurm.templates)."""

    def __init__(self, config: AppConfig, stages_archive: bytes) -> None:
        self._config = config
        self._archive = stages_archive
        self._site = _environment(_template_loader(config.slurm.templates))
        self._own = _environment(jinja2.FunctionLoader(_protocol))
        self._own.globals["clean"] = CLEAN.strip()

    def job_files(self, request: RenderRequest) -> dict[str, bytes]:
        """Return the files of a job's folder by name; the same request gives the same bytes.

        Raises ConfigurationError where a template or a setting makes text that would be misread,
        ProcessingError where the request contradicts itself.
        """
        _check(request)
        calls = self._calls(request)
        texts = {script(call.stage): self._script(call, request) for call in calls}
        for beam in request.beams:
            texts[engine_input(beam.number)] = self._engine_input(beam, request.case.machine)
        digests = {call.stage: _sha256(texts[script(call.stage)].encode()) for call in calls}
        texts[CHAIN] = _sound(encode_chain(self._chain(request, calls, digests)), request)
        texts[SUBMIT_SCRIPT] = self._render(
            self._own, "submit.sh.j2", calls=calls, folder=request.job_folder, clean=CLEAN.strip()
        )
        rendered = {name: text.encode() for name, text in texts.items()}
        return {**rendered, STAGES_ARCHIVE: self._archive}

    def observe_script(self, effect: Observe) -> str:
        """Return the script of one poll, to be read by bash from its standard input."""
        return self._render(
            self._own,
            "observe.sh.j2",
            nonce=effect.nonce,
            jobs=effect.jobs,
            sacct_ids=effect.sacct_ids,
            squeue_format=SQUEUE_FORMAT,
            sacct_fields=SACCT_FIELDS,
            field=FIELD,
            cap=_SECTION_CAP,
            workspace=self._config.paths.remote_workspace,
        )

    def _calls(self, request: RenderRequest) -> tuple[StageCall, ...]:
        slurm = self._config.slurm
        resources = {}
        for stage, asked in (
            ("interpret", slurm.stages.interpret),
            ("beams", slurm.stages.beams),
            ("convert", slurm.stages.convert),
        ):
            more = request.asks.get(stage)
            resources[stage] = StageResources(
                partition=asked.partition or slurm.partition,
                time=time_text(more[1]) if more else asked.time,
                memory=memory_text(more[0]) if more else asked.memory,
                cpus=asked.cpus,
                gres=slurm.gres if stage == "beams" else None,
                extra=asked.extra,
                left_out=request.left_out if stage == "beams" else (),
            )
        return plan_calls(
            request.submissions,
            resources,
            folder=request.job_folder,
            comment=self._comment(request.case),
            account=slurm.account,
            qos=slurm.qos,
            gpu_count=self._config.resources.gpu_count,
            waits_for=[
                (job, submission_name(request.case.instance, request.case.case_id, job, "beams"))
                for job in request.waits_for
            ],
        )

    def _comment(self, case: Case) -> str:
        app = self._config.app
        text = self._config.slurm.comment or default_comment(app.name, app.environment)
        # A label is made of a folder's name, which may name a patient: only where a site asks for it.
        return f"{text}; case {case.label}" if self._config.privacy.names else text

    def _script(self, call: StageCall, request: RenderRequest) -> str:
        text = self._render(
            self._site,
            f"{call.stage}.sbatch.j2",
            folder=request.job_folder,
            python=self._config.stages.python,
            prologue=self._config.slurm.prologue,
            stages_digest=_sha256(self._archive),
        )
        check_batch_script(text, script(call.stage))
        return text

    def _engine_input(self, beam: Beam, machine: str) -> str:
        text = self._render(
            self._site,
            "moqui_tps.in.j2",
            beam=beam,
            moqui=self._config.moqui,
            gantry_number=self._machine(machine).gantry_number,
        )
        check_engine_input(text, engine_input(beam.number))
        return text

    def _chain(
        self, request: RenderRequest, calls: tuple[StageCall, ...], digests: Mapping[str, str]
    ) -> Chain:
        case = request.case
        depends = {call.stage: call.dependency for call in calls}
        interpreted = request.interpreted or (request.job, None)
        return Chain(
            site=case.site,
            instance=case.instance,
            key=case.case_id,
            job=request.job,
            plan_uid=case.plan_uid,
            beams=tuple(
                ChainBeam(
                    index=beam.index,
                    number=beam.number,
                    name=beam.name,
                    log_folder=safe_name(beam.name),
                    energies=beam.energies,
                    input_digest=beam.input_digest,
                    seed=beam.seed,
                    source_job=request.sources.get(beam.index),
                )
                for beam in case.beams
            ),
            submissions=tuple(
                ChainSubmission(
                    stage=s.stage,
                    name=s.name,
                    script_digest=digests[s.stage],
                    indices=s.indices,
                    dependency=depends[s.stage],
                )
                for s in request.submissions
            ),
            interpreted=Interpreted(*interpreted),
            stages_digest=_sha256(self._archive),
            audit_head=request.audit_head,
            settings=self._settings(case.machine),
        )

    def _settings(self, machine: str) -> Settings:
        calibration, grid, stages = self._machine(machine), self._config.moqui.grid, self._config.stages
        return Settings(
            calibration=Calibration(
                machine=machine,
                x_offset=calibration.x_offset,
                y_offset=calibration.y_offset,
                x_gain=calibration.x_gain,
                y_gain=calibration.y_gain,
                row_period_ms=calibration.row_period_ms,
                dose1_factors=dict(calibration.dose1_factors),
            ),
            grid=Grid(size=grid.size, spacing=grid.spacing, position=grid.position),
            log_dialect=self._config.moqui.log_dialect,
            engine=stages.engine,
            engine_name=stages.engine_name,
            require_gpu=stages.require_gpu,
            dose_type=self._config.moqui.dose_type,
        )

    def _machine(self, name: str) -> MachineConfig:
        try:
            return self._config.machines[name]
        except KeyError:
            known = ", ".join(self._config.machines)
            raise ConfigurationError(
                f"the case was delivered on {name}, which machines does not list ({known})",
                fix="Give its calibration under machines",
            ) from None

    def _render(self, environment: jinja2.Environment, name: str, **values: object) -> str:
        try:
            text = environment.get_template(name).render(**values)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(
                f"template error: {error.message}", where=f"{error.filename or name}:{error.lineno}"
            ) from error
        except jinja2.TemplateNotFound as error:
            raise ConfigurationError(f"template error: there is no {error.name}", where=name) from error
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
            raise ConfigurationError(f"template error: {error}", where=_place(error, name)) from error
        if "\0" in text or "\r" in text:
            raise ConfigurationError("the rendered text holds a NUL or a carriage return", where=name)
        return text


def _check(request: RenderRequest) -> None:
    """Refuse a request whose parts do not fit; what chain.json shows by itself is found in it."""
    wrong = []
    computed = {i for s in request.submissions if s.stage == "beams" for i in s.indices}
    if {beam.index for beam in request.beams} != computed:
        wrong.append(f"its array has the indices {sorted(computed)}, its beams are others")
    if strange := set(request.sources) - {beam.index for beam in request.case.beams}:
        wrong.append(f"the case has no beams of the indices {sorted(strange)}")
    if any(job == request.job or not is_job(job) for job in request.waits_for):
        wrong.append(f"it would wait for {', '.join(request.waits_for)}")
    if wrong:
        raise _contradiction(request, "; ".join(wrong))


def _sound(text: str, request: RenderRequest) -> str:
    """Return chain.json as the stages will read it: what they would refuse is not sent."""
    try:
        decode_chain(text)
    except FormatError as error:
        raise _contradiction(request, str(error)) from error
    return text


def _contradiction(request: RenderRequest, what: str) -> ProcessingError:
    return ProcessingError(
        f"the plan of the job contradicts itself: {what}",
        where=f"job {request.job} of {request.case.case_id}",
        fix="This is a bug of this program: please report it; nothing was sent",
    )


def _environment(loader: jinja2.BaseLoader) -> jinja2.Environment:
    # Shell and engine input, not HTML; what reaches a shell goes through `sh`.
    environment = jinja2.Environment(  # noqa: S701
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        newline_sequence="\n",
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment


def _place(error: Exception, name: str) -> str:
    """Return file and line of a template where an error arose, as far as Jinja tells."""
    place, step = name, error.__traceback__
    while step is not None:
        if "__jinja_exception__" in step.tb_frame.f_globals:
            place = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _template_loader(site: Path | None) -> jinja2.BaseLoader:
    own = jinja2.FunctionLoader(_job_template)
    if site is None:
        return own
    if not site.is_dir():
        raise ConfigurationError(f"{site} is no folder", where="slurm.templates")
    return jinja2.ChoiceLoader([jinja2.FileSystemLoader(site), own])


def _job_template(name: str) -> _Source | None:
    # In the wheel the templates lie in the package, in a checkout beside it.
    inside = files("mqi_hpc") / "job_templates" / name
    beside = Path(str(files("mqi_hpc"))).parent / "job_templates" / name
    for place in (inside, beside):
        if place.is_file():
            return _source(place)
    return None


def _protocol(name: str) -> _Source | None:
    place = files("mqi_hpc.infrastructure.slurm") / "protocol" / name
    return _source(place) if place.is_file() else None


def _source(place: Traversable) -> _Source:
    return place.read_text(encoding="utf-8"), str(place), None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
