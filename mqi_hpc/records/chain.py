"""chain.json: what a job is, fixed before it is submitted and never changed after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Dict, List, Optional, Tuple

from mqi_hpc.records.form import Form, FormatError, dumps, loads
from mqi_hpc.records.layout import STAGES, is_job, is_key, submission_name

VERSION = 1
SUFFIXES = (STAGES, STAGES[1:], STAGES[2:])
"""The stages a job may have, in order: it takes what it leaves out from an older job of the case."""
DIALECTS = ("rows", "flat")
DOSE_TYPES = ("PHYSICAL", "EFFECTIVE")


@dataclass(frozen=True)
class ChainBeam:
    """A beam. `log_folder` is the name the engine looks for; `energies` (MeV) are those of its layers.

    `source_job` is the older job that holds, or still computes, its dose; none where it is computed here,
    or where no dose of it is to be expected.
    """

    index: int
    number: int
    name: str
    log_folder: str
    energies: Tuple[float, ...]
    input_digest: str
    seed: int
    source_job: Optional[str] = None


@dataclass(frozen=True)
class ChainSubmission:
    """One sbatch: Slurm job name, SHA-256 of the script, array indices, what it waits for (for people)."""

    stage: str
    name: str
    script_digest: str
    indices: Tuple[int, ...]
    dependency: Optional[str] = None


@dataclass(frozen=True)
class Interpreted:
    """The job whose interpret output serves this one, and SHA-256 of its record (null: this job's own)."""

    job: str
    record_digest: Optional[str] = None


@dataclass(frozen=True)
class Calibration:
    """A machine's log calibration: mm = (raw - offset) * gain; row period in ms; factor by DOSE1_RANGE."""

    machine: str
    x_offset: float
    y_offset: float
    x_gain: float
    y_gain: float
    row_period_ms: float
    dose1_factors: Dict[str, float]


@dataclass(frozen=True)
class Grid:
    """The dose grid in x, y, z: voxels, voxel size (mm), lower corner of the first voxel (mm)."""

    size: Tuple[int, int, int]
    spacing: Tuple[float, float, float]
    position: Tuple[float, float, float]


@dataclass(frozen=True)
class Settings:
    """What the stage programs need to know of the site."""

    calibration: Calibration
    grid: Grid
    log_dialect: str
    engine: Tuple[str, ...]
    engine_name: str
    require_gpu: bool
    dose_type: str


@dataclass(frozen=True)
class Chain:
    """The whole of chain.json. `audit_head` is the head of the store's event chain at planning.

    `submissions` are all three stages, beams and convert, or convert alone; `beams` are all of the case.
    """

    site: str
    instance: str
    key: str
    job: str
    plan_uid: str
    beams: Tuple[ChainBeam, ...]
    submissions: Tuple[ChainSubmission, ...]
    interpreted: Interpreted
    stages_digest: str
    audit_head: str
    settings: Settings
    version: int = VERSION

    def beam(self, index: int) -> ChainBeam:
        """Return the beam of an array index; raises FormatError where there is none."""
        for beam in self.beams:
            if beam.index == index:
                return beam
        raise FormatError(f"chain.json has no beam of index {index}")

    def submission(self, stage: str) -> ChainSubmission:
        """Return the submission of a stage; raises FormatError where there is none."""
        for submission in self.submissions:
            if submission.stage == stage:
                return submission
        raise FormatError(f"chain.json has no submission of stage {stage!r}")

    @property
    def stages(self) -> Tuple[str, ...]:
        """The stages of this job, in order."""
        return tuple(submission.stage for submission in self.submissions)

    @property
    def computed(self) -> Tuple[int, ...]:
        """The indices of the beams that this job computes, none where it converts alone."""
        return self.submission("beams").indices if "beams" in self.stages else ()

    def dose_job(self, beam: ChainBeam) -> Optional[str]:
        """Return the job that holds a beam's dose, or comes to; None where no dose is to be expected."""
        return self.job if beam.index in self.computed else beam.source_job


def encode_chain(chain: Chain) -> str:
    """Return the text of chain.json."""
    return dumps(asdict(chain)) + "\n"


def decode_chain(text: str) -> Chain:
    """Return the chain in `text`; raises FormatError where it is of another form or contradicts itself."""
    form = loads(text, "chain.json")
    if (version := form.integer("version")) != VERSION:
        raise FormatError(f"chain.json is of version {version}, this program reads {VERSION}")
    chain = Chain(
        site=form.text("site"),
        instance=form.text("instance"),
        key=form.text("key"),
        job=form.text("job"),
        plan_uid=form.text("plan_uid"),
        beams=tuple(_beam(item) for item in form.forms("beams")),
        submissions=tuple(_submission(item) for item in form.forms("submissions")),
        interpreted=_interpreted(form.form("interpreted")),
        stages_digest=form.digest("stages_digest"),
        audit_head=form.text("audit_head"),
        settings=_settings(form.form("settings")),
    )
    form.end()
    _check(chain)
    return chain


def _check(chain: Chain) -> None:
    if not is_key(chain.key) or not is_job(chain.job) or not is_job(chain.interpreted.job):
        raise FormatError(
            f"chain.json: {chain.key!r}, {chain.job!r} or {chain.interpreted.job!r} is no key or job"
        )
    indices = [beam.index for beam in chain.beams]
    if indices != list(range(len(indices))) or not indices:
        raise FormatError(f"chain.json: beams have the indices {indices}, not 0, 1, 2, ...")
    if len({beam.number for beam in chain.beams}) != len(indices):
        raise FormatError("chain.json: two beams have one number")
    if chain.stages not in SUFFIXES:
        raise FormatError(
            f"chain.json: the submissions {', '.join(chain.stages)} are no chain: interpret, beams, convert, "
            "or the last two, or the last of them"
        )
    for submission in chain.submissions:
        name = submission_name(chain.instance, chain.key, chain.job, submission.stage)
        if submission.name != name:
            raise FormatError(f"chain.json: {submission.stage} is named {submission.name!r}, not {name!r}")
        alone = submission.stage != "beams"
        fits = submission.indices == (0,) if alone else _ascends(submission.indices)
        if not fits or not set(submission.indices) <= set(indices):
            raise FormatError(
                f"chain.json: {submission.stage} has the array indices {list(submission.indices)}"
            )
    _check_sources(chain)


def _check_sources(chain: Chain) -> None:
    """Refuse beams and interpret's output that are both made here and taken from elsewhere, or neither."""
    for beam in chain.beams:
        if beam.index in chain.computed and beam.source_job not in (None, chain.job):
            raise FormatError(
                f"chain.json: beam {beam.number} is computed here and taken from {beam.source_job} too"
            )
        if beam.index not in chain.computed and beam.source_job == chain.job:
            raise FormatError(f"chain.json: beam {beam.number} is taken from here and not computed here")
    own = chain.interpreted.job == chain.job
    if (chain.interpreted.record_digest is None) is not own:
        raise FormatError(
            "chain.json: another job's interpret record has a digest, this job's own has none yet"
        )
    if ("interpret" in chain.stages) is not own:
        raise FormatError(
            f"chain.json: interpret's output is taken from {chain.interpreted.job}, and interpret is "
            f"{'not ' if own else ''}among the submissions of {chain.job}"
        )


def _ascends(indices: Tuple[int, ...]) -> bool:
    return bool(indices) and all(a < b for a, b in zip(indices, indices[1:]))


def _beam(form: Form) -> ChainBeam:
    beam = ChainBeam(
        index=form.integer("index"),
        number=form.integer("number", 1),
        name=form.text("name"),
        log_folder=form.path("log_folder"),
        energies=tuple(form.floats("energies")),
        input_digest=form.digest("input_digest"),
        seed=form.integer("seed"),
        source_job=form.optional("source_job", form.text),
    )
    form.end()
    if beam.source_job is not None and not is_job(beam.source_job):
        raise FormatError(f"{form.what}: source_job {beam.source_job!r} is no job")
    return beam


def _submission(form: Form) -> ChainSubmission:
    submission = ChainSubmission(
        stage=form.text("stage"),
        name=form.text("name"),
        script_digest=form.digest("script_digest"),
        indices=tuple(form.integers("indices")),
        dependency=form.optional("dependency", form.text),
    )
    form.end()
    return submission


def _interpreted(form: Form) -> Interpreted:
    value = Interpreted(job=form.text("job"), record_digest=form.optional("record_digest", form.digest))
    form.end()
    return value


def _settings(form: Form) -> Settings:
    settings = Settings(
        calibration=_calibration(form.form("calibration")),
        grid=read_grid(form.form("grid")),
        log_dialect=form.text("log_dialect"),
        engine=tuple(form.texts("engine")),
        engine_name=form.text("engine_name"),
        require_gpu=form.flag("require_gpu"),
        dose_type=form.text("dose_type"),
    )
    form.end()
    if settings.log_dialect not in DIALECTS or settings.dose_type not in DOSE_TYPES or not settings.engine:
        raise FormatError(f"{form.what}: log_dialect, dose_type or engine is not one this program knows")
    return settings


def _calibration(form: Form) -> Calibration:
    factors = form.form("dose1_factors")
    value = Calibration(
        machine=form.text("machine"),
        x_offset=form.number("x_offset"),
        y_offset=form.number("y_offset"),
        x_gain=form.number("x_gain"),
        y_gain=form.number("y_gain"),
        row_period_ms=form.number("row_period_ms"),
        dose1_factors={name: factors.number(name) for name in factors.names()},
    )
    form.end()
    return value


def read_grid(form: Form) -> Grid:
    """Return a grid from its object; sizes and spacings are positive."""
    size: List[int] = form.integers("size", 1)
    spacing = form.numbers("spacing", 3)
    position = form.numbers("position", 3)
    form.end()
    if len(size) != 3 or min(spacing) <= 0:
        raise FormatError(f"{form.what}: size {size} and spacing {spacing} are no three-dimensional grid")
    return Grid(
        size=(size[0], size[1], size[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        position=(position[0], position[1], position[2]),
    )
