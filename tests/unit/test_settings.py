"""Every setting has a test of what it changes, and no test is of a setting that is none.

A test here takes two configurations that differ in one setting alone, and shows that what the program does
differs. `changes` says which setting a test is of; `test_every_setting_has_a_test` holds them together.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import pytest
import structlog
from pydantic import BaseModel

from mqi_hpc.controllers.container import Container
from mqi_hpc.controllers.parts import Parts
from mqi_hpc.core.chain_plan import plan_submissions
from mqi_hpc.core.effects import (
    Completion,
    Download,
    Effect,
    Failure,
    Observe,
    ResultFile,
    Scan,
    Submit,
    Upload,
)
from mqi_hpc.core.errors import ConfigurationError, ConnectionError, HostKeyError, RejectedCase, ResourceError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.core.models import STAGES, Case, Job, SubmitState, Task, TaskStatus
from mqi_hpc.core.monitoring import DiskReading, DiskUsage, Health, HealthStatus, Metric
from mqi_hpc.core.resubmit import History, first_plan
from mqi_hpc.core.retention import JobHistory
from mqi_hpc.core.retry_causes import Asked, Decision, decide
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader
from mqi_hpc.infrastructure.connection import pool as pool_module
from mqi_hpc.infrastructure.executors.shell import Result
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.chain import Settings, decode_chain
from mqi_hpc.services.job_service import JobService
from mqi_hpc.services.resource_service import ResourceService
from mqi_hpc.stages.spots import calibrate, decode
from tests.support.bench import KEY, PlainRenderer, make_case
from tests.support.cases import START, CaseFolder, deliver
from tests.support.cases import make_case as make_case_folder
from tests.support.cluster_config import merged, to_yaml
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock, Ids, World
from tests.unit.test_executors_effects import FakeShell
from tests.unit.test_executors_effects import said as ran
from tests.unit.test_retention import NOW, case_of, job_with
from tests.unit.test_system_monitor import Probe

T = TypeVar("T")
_GB = 1_000_000_000

# The settings there are


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every setting by its dotted path; of a section that a site names itself, its keys after a *."""
    for name, info in model.model_fields.items():
        path, kind = f"{prefix}{name}", info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{path}.")
            continue
        yield path
        inner = get_args(kind)[1] if get_origin(kind) is dict else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{path}.*.")


TESTED: dict[str, str] = {}
"""By setting, the test of what it changes."""
TOUCHED: set[str] = set()
"""The settings that the test under way has changed."""


def changes(*paths: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say of which settings a test is; it fails where it changes others, or none.

    A test with a parameter `path` is of that one setting at a time.
    """

    def enter(test: Callable[..., None]) -> Callable[..., None]:
        for path in paths:
            assert path not in TESTED, f"{path} has a test already: {TESTED[path]}"
            TESTED[path] = test.__name__

        @wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            TOUCHED.clear()
            test(*args, **kwargs)
            wanted = {kwargs["path"]} if "path" in inspect.signature(test).parameters else set(paths)
            assert wanted == TOUCHED, f"this is a test of {sorted(wanted)}, and changed {sorted(TOUCHED)}"

        return run

    return enter


def untested(settings: Iterator[str], tested: Mapping[str, str]) -> list[str]:
    """Return the settings without a test, and the tests of what is no setting."""
    known = set(settings)
    return sorted({f"{path}: no test of what it changes" for path in known - set(tested)}) + sorted(
        f"{path}: {tested[path]} is of no setting" for path in set(tested) - known
    )


def test_every_setting_has_a_test() -> None:
    assert untested(settings_of(AppConfig), TESTED) == []


def test_a_setting_without_a_test_and_a_test_without_a_setting_are_found() -> None:
    class Inner(BaseModel):
        old: int = 1
        new: int = 1

    class Outer(BaseModel):
        inner: Inner = Inner()
        own: dict[str, Inner] = {}

    assert list(settings_of(Outer)) == ["inner.old", "inner.new", "own", "own.*.old", "own.*.new"]
    tested = dict.fromkeys(("inner.old", "own", "own.*.old", "own.*.new", "gone"), "a_test")
    assert untested(settings_of(Outer), tested) == [
        "inner.new: no test of what it changes",
        "gone: a_test is of no setting",
    ]


# Two configurations that differ in one setting


class Site:
    """A home for configurations; `both` makes two that differ in one setting, `pair` runs something on both.

    Where two things need folders of their own, they are made below `home / side`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cases = home / "cases"
        self.cases.mkdir()
        (home / "known_hosts").touch()
        self.closing: list[Callable[[], None]] = []

    def both(self, path: str, value: Any, **given: Any) -> tuple[AppConfig, AppConfig]:
        """Return a configuration with `path` as it is by itself, and one with `value`; `given` holds in both.

        Keys of `given` are sections.
        """
        base: dict[str, Any] = {
            "app": {"state_file": str(self.home / "state" / "mqi.sqlite")},
            "paths": {"local_logdata": str(self.cases), "remote_workspace": "/work/mqi"},
            "ssh": {
                "host": "127.0.0.1",
                "port": 1,
                "known_hosts": str(self.home / "known_hosts"),
                "config_file": str(self.home / "no-ssh-config"),
            },
        }
        base = merged(base, given)
        before = self._load(base)
        after = self._load(_with(base, path.split("."), value))
        old, new = dict(_leaves(before)), dict(_leaves(after))
        differ = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        # The results lie beside the state file where nothing else is said.
        differ -= {"paths.local_results"} if path == "app.state_file" else set()
        strange = sorted(name for name in differ if name != path and not name.startswith(f"{path}."))
        assert differ, f"{path} is as it was"
        assert not strange, f"only {path} should differ, not {strange}"
        parts = path.split(".")
        TOUCHED.add(".".join(["machines", "*", *parts[2:]]) if parts[0] == "machines" and parts[2:] else path)
        return before, after

    def container(self, config: AppConfig) -> Container:
        made = Container(config, None)
        self.closing.append(made.close)
        return made

    def parts(self, config: AppConfig) -> Parts:
        made = Parts(config)
        self.closing.append(made.close)
        return made

    def case_folder(self, name: str = "P001") -> CaseFolder:
        return make_case_folder(self.cases / name)

    def _load(self, values: dict[str, Any]) -> AppConfig:
        return ConfigLoader().parse(to_yaml(values), self.home / "config.yaml")


def _with(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    inner = _with(values.get(path[0], {}), path[1:], value) if path[1:] else value
    return {**values, path[0]: inner}


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value, path = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{path}.")
        elif isinstance(value, dict) and any(isinstance(one, BaseModel) for one in value.values()):
            for key, one in value.items():
                yield from _leaves(one, f"{path}.{key}.")
        else:
            yield path, value


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for close in reversed(made.closing):
        close()
    for handler in list(logging.getLogger("mqi_hpc").handlers):
        logging.getLogger("mqi_hpc").removeHandler(handler)
        handler.close()
    structlog.reset_defaults()


# Effects as production has them

DOWNLOAD = Download(
    case_id=KEY,
    job_id=f"{KEY}-j01",
    job_folder=f"/work/mqi/{KEY}/j01",
    folder="P/j01",
    results=(),
    logs=("a",),
)


class Gated:
    """A shell whose commands do not end before it is closed; each tells that it has begun."""

    target = "somewhere"

    def __init__(self) -> None:
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def run(self, *_: object, **__: object) -> Result:
        self.begun.release()
        self.gate.wait(60)
        raise ConnectionError("it was enough")

    def close(self) -> None:
        self.gate.set()


def one(parts: Parts, effect: Effect) -> Completion:
    """What becomes of one effect."""
    parts.effects.start(effect)
    (completion,) = parts.effects.completions(60)
    return completion


# What is rendered


def job(config: AppConfig, case: Case | None = None) -> dict[str, str]:
    """The texts of a first job of three beams (2, 3, 4), by file."""
    case = case or make_case(3)
    request = RenderRequest(
        case=case,
        job="j01",
        job_folder=f"{config.paths.remote_workspace}/{case.case_id}/j01",
        submissions=plan_submissions(case.instance, case.case_id, 1, case.beams),
        beams=case.beams,
        audit_head="",
    )
    files = Renderer(config, b"archive").job_files(request)
    return {name: content.decode() for name, content in files.items()}


def asked(submit_sh: str, stage: str) -> list[str]:
    """The options that submit.sh gives to sbatch for a stage."""
    text = submit_sh.replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith(f"submit {stage} ")]
    return shlex.split(line)[2:]


def option(config: AppConfig, name: str, stages: Sequence[str] = STAGES) -> list[str | None]:
    """The value of an option at each stage, None where it is not given."""
    text, start = job(config)["submit.sh"], f"--{name}="
    words = [[word for word in asked(text, stage) if word.startswith(start)] for stage in stages]
    return [found[0].removeprefix(start) if found else None for found in words]


def told(config: AppConfig) -> Settings:
    """What chain.json tells the stages."""
    return decode_chain(job(config)["chain.json"]).settings


def engine_lines(config: AppConfig) -> dict[str, str]:
    """The engine's input of beam 2."""
    lines = job(config)["beam_2.in"].splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


ABOUT = ", unattended proton beam QA; ask the owner of this account"


@changes("app.name")
def test_the_name_begins_the_default_comment(site: Site) -> None:
    before, after = site.both("app.name", "QA room 5")
    assert option(before, "comment") == [f"mqi-hpc{ABOUT}"] * 3
    assert option(after, "comment") == [f"QA room 5{ABOUT}"] * 3


@changes("app.environment")
def test_an_environment_that_is_not_production_is_in_the_comment(site: Site) -> None:
    before, after = site.both("app.environment", "test")
    assert option(before, "comment") == [f"mqi-hpc{ABOUT}"] * 3
    assert option(after, "comment") == [f"mqi-hpc (test){ABOUT}"] * 3


@changes("app.version")
def test_the_version_is_for_the_sites_own_records_and_changes_nothing(site: Site) -> None:
    before, after = site.both("app.version", "3.1")
    assert job(before) == job(after)
    assert "does nothing" in str(type(before.app).model_fields["version"].description)


@changes("slurm.comment")
def test_a_comment_of_the_sites_own(site: Site) -> None:
    before, after = site.both("slurm.comment", "ask ann", app={"name": "x", "environment": "test"})
    assert option(before, "comment") == [f"x (test){ABOUT}"] * 3
    assert option(after, "comment") == ["ask ann"] * 3


@changes("privacy.names")
def test_labels_leave_only_where_a_site_asks_for_it(site: Site) -> None:
    before, after = site.both("privacy.names", True, slurm={"comment": "ask ann"})
    assert option(before, "comment") == ["ask ann"] * 3
    assert option(after, "comment") == [f"ask ann; case P-{KEY}"] * 3
    # Names and paths are the key's for ever.
    case = make_case(3).evolve(label="Doe-f01")
    for config, times in ((before, 0), (after, 3)):
        texts = job(config, case)
        assert [name for name, text in texts.items() if "Doe" in text] == (["submit.sh"] if times else [])
        assert texts["submit.sh"].count("Doe") == times


@changes("slurm.partition")
def test_partition(site: Site) -> None:
    before, after = site.both("slurm.partition", "gpu")
    assert (option(before, "partition"), option(after, "partition")) == ([None] * 3, ["gpu"] * 3)


@changes("slurm.account")
def test_account(site: Site) -> None:
    before, after = site.both("slurm.account", "physics")
    assert (option(before, "account"), option(after, "account")) == ([None] * 3, ["physics"] * 3)


@changes("slurm.qos")
def test_qos(site: Site) -> None:
    before, after = site.both("slurm.qos", "high")
    assert (option(before, "qos"), option(after, "qos")) == ([None] * 3, ["high"] * 3)


@changes("slurm.gres")
def test_gres_is_of_the_beams(site: Site) -> None:
    before, after = site.both("slurm.gres", "gpu:a100:1")
    assert option(before, "gres") == [None, "gpu:1", None]
    assert option(after, "gres") == [None, "gpu:a100:1", None]


_STAGE = "slurm.stages."
_OF_A_STAGE = {"partition": "big", "time": "2-00", "memory": "16G", "cpus": 4, "extra": ["--constraint=a100"]}
_SAID_AS = {"time": "time", "memory": "mem", "cpus": "cpus-per-task", "extra": "constraint"}
STAGE_PATHS = [f"{_STAGE}{stage}.{key}" for stage in STAGES for key in _OF_A_STAGE]


@pytest.mark.parametrize("path", STAGE_PATHS)
@changes(*STAGE_PATHS)
def test_what_a_stage_asks_for(site: Site, path: str) -> None:
    stage, key = path.removeprefix(_STAGE).split(".")
    before, after = site.both(path, _OF_A_STAGE[key])
    others = [name for name in STAGES if name != stage]
    was_sent, is_sent = job(before)["submit.sh"], job(after)["submit.sh"]
    assert [asked(was_sent, name) for name in others] == [asked(is_sent, name) for name in others]
    name, wanted = _SAID_AS.get(key, key), _OF_A_STAGE[key]
    was = {"time": "01:00:00", "memory": "4G", "cpus": "1"}.get(key)
    assert option(before, name, [stage]) == [was]
    assert option(after, name, [stage]) == ["a100" if key == "extra" else str(wanted)]


@changes("slurm.prologue")
def test_the_prologue_is_run_before_each_stage(site: Site) -> None:
    before, after = site.both("slurm.prologue", "module load cuda")
    for stage in STAGES:
        was, now = (job(config)[f"{stage}.sbatch"].splitlines() for config in (before, after))
        assert "module load cuda" not in was
        (run,) = [number for number, line in enumerate(now) if line.startswith("exec ")]
        assert now.index("module load cuda") < run


@changes("slurm.templates")
def test_a_template_of_the_sites_own(site: Site) -> None:
    folder = site.home / "templates"
    folder.mkdir()
    (folder / "convert.sbatch.j2").write_text("#!/bin/bash\n# of the site\n")
    before, after = site.both("slurm.templates", str(folder))
    assert "# of the site" not in job(before)["convert.sbatch"]
    assert job(after)["convert.sbatch"] == "#!/bin/bash\n# of the site\n"
    assert job(after)["beams.sbatch"] == job(before)["beams.sbatch"]


@changes("slurm.backend")
def test_there_is_one_backend(site: Site) -> None:
    """Nothing can be chosen yet: what is not the one there is, is refused."""
    with pytest.raises(
        ConfigurationError, match=r"slurm\.backend: 'rest' is not right: input should be 'cli'"
    ):
        site.both("slurm.backend", "rest")
    TOUCHED.add("slurm.backend")


@changes("stages.python")
def test_the_python_that_runs_the_stages(site: Site) -> None:
    before, after = site.both("stages.python", "/opt/py/bin/python")
    for stage in STAGES:
        assert "\nexec python3 -B stages.pyz " in job(before)[f"{stage}.sbatch"]
        assert "\nexec /opt/py/bin/python -B stages.pyz " in job(after)[f"{stage}.sbatch"]


@changes("stages.engine")
def test_the_engines_command(site: Site) -> None:
    before, after = site.both("stages.engine", ["/opt/moqui", "--fast"])
    assert (told(before).engine, told(after).engine) == (("tps_env",), ("/opt/moqui", "--fast"))


@changes("stages.engine_name")
def test_the_engines_name(site: Site) -> None:
    before, after = site.both("stages.engine_name", "our fork")
    assert (told(before).engine_name, told(after).engine_name) == ("moqui", "our fork")


@changes("stages.require_gpu")
def test_whether_a_gpu_is_required(site: Site) -> None:
    before, after = site.both("stages.require_gpu", False)
    assert (told(before).require_gpu, told(after).require_gpu) == (True, False)


# The engine and the machines


@changes("moqui.log_dialect")
def test_the_dialect_of_logs_is_told_to_interpret_and_engine(site: Site) -> None:
    before, after = site.both("moqui.log_dialect", "flat")
    assert (told(before).log_dialect, told(after).log_dialect) == ("rows", "flat")
    assert (engine_lines(before)["LogDialect"], engine_lines(after)["LogDialect"]) == ("rows", "flat")


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("moqui.grid.size", [100, 110, 120], "PhantomDim"),
        ("moqui.grid.spacing", [1, 3, 2], "PhantomUnit"),
        ("moqui.grid.position", [-10, -20, -30], "PhantomPosition"),
    ],
)
@changes("moqui.grid.size", "moqui.grid.spacing", "moqui.grid.position")
def test_the_grid_is_the_engines_and_the_records(site: Site, path: str, value: list[int], key: str) -> None:
    before, after = site.both(path, value)
    was, lines = engine_lines(before), engine_lines(after)
    assert [int(lines[f"{key}{axis}"]) for axis in "XYZ"] == value
    assert list(getattr(told(after).grid, path.rpartition(".")[2])) == value
    assert {name for name in lines if lines[name] != was[name]} == {f"{key}{axis}" for axis in "XYZ"}


@changes("moqui.max_histories_per_batch")
def test_histories_at_once(site: Site) -> None:
    before, after = site.both("moqui.max_histories_per_batch", 5000)
    name = "MaxHistoriesPerBatch"
    assert (engine_lines(before)[name], engine_lines(after)[name]) == ("10000000", "5000")


@changes("moqui.particles_per_history")
def test_protons_of_a_history(site: Site) -> None:
    before, after = site.both("moqui.particles_per_history", 250.5)
    name = "ParticlesPerHistory"
    assert (engine_lines(before)[name], engine_lines(after)[name]) == ("1.0", "250.5")


@changes("moqui.extra")
def test_more_lines_for_the_engine(site: Site) -> None:
    before, after = site.both("moqui.extra", {"Scatter": "off"})
    assert engine_lines(after) == {**engine_lines(before), "Scatter": "off"}


@changes("moqui.dose_type")
def test_the_dose_type_of_the_rt_dose(site: Site) -> None:
    before, after = site.both("moqui.dose_type", "EFFECTIVE")
    assert (told(before).dose_type, told(after).dose_type) == ("PHYSICAL", "EFFECTIVE")


@changes("moqui.random_seed_base")
def test_seeds_count_from_the_base(site: Site) -> None:
    folder = str(site.case_folder().folder)
    before, after = site.both("moqui.random_seed_base", 70000)
    for config, base in ((before, 1000), (after, 70000)):
        (case,) = site.container(config).cases.preview(folder)
        assert [beam.seed for beam in case.beams] == [base + beam.number for beam in case.beams]


MACHINE = {"x_offset": 10, "y_offset": 20, "x_gain": 0.5, "y_gain": 0.25, "gantry_number": 2}
ROWS = b"".join(word.to_bytes(2, "big") for word in (110, 220, 0, 0, 100, 0, 0, 0)) * 2


def measured(config: AppConfig) -> list[float]:
    """Time (ms), x and y (mm) and count of the second of two rows of a log, as interpret reads them."""
    raw = decode(ROWS, "a.ptn")
    found: list[float] = calibrate(raw, raw[:, 0] > 0, told(config).calibration, "2")[1].tolist()
    return found


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("machines.*.x_offset", 60, [0.06, 25.0, 50.0, 100.0]),
        ("machines.*.y_offset", 60, [0.06, 50.0, 40.0, 100.0]),
        ("machines.*.x_gain", 2.0, [0.06, 200.0, 50.0, 100.0]),
        ("machines.*.y_gain", 2.0, [0.06, 50.0, 400.0, 100.0]),
        ("machines.*.row_period_ms", 0.5, [0.5, 50.0, 50.0, 100.0]),
        ("machines.*.dose1_factors", {"2": 3.0}, [0.06, 50.0, 50.0, 300.0]),
    ],
)
@changes(
    "machines.*.x_offset",
    "machines.*.y_offset",
    "machines.*.x_gain",
    "machines.*.y_gain",
    "machines.*.row_period_ms",
    "machines.*.dose1_factors",
)
def test_the_calibration_of_a_machine(site: Site, path: str, value: Any, expected: list[float]) -> None:
    before, after = site.both(path.replace("*", "G2"), value, machines={"G2": MACHINE})
    assert measured(before) == [0.06, 50.0, 50.0, 100.0]
    assert measured(after) == expected


@changes("machines.*.gantry_number")
def test_the_gantrys_number_is_told_to_the_engine(site: Site) -> None:
    before, after = site.both("machines.G2.gantry_number", 7, machines={"G2": MACHINE})
    assert (engine_lines(before)["GantryNum"], engine_lines(after)["GantryNum"]) == ("2", "7")


@changes("machines")
def test_a_machine_that_is_not_listed_is_refused(site: Site) -> None:
    folder = str(site.case_folder().folder)
    before, after = site.both("machines", {"G9": MACHINE})
    assert len(site.container(before).cases.preview(folder)) == 1
    with pytest.raises(RejectedCase, match="G2"):
        site.container(after).cases.preview(folder)


# Who we are, and where things are


@changes("app.site")
def test_the_site_is_part_of_a_case(site: Site) -> None:
    folder = str(site.case_folder().folder)
    before, after = site.both("app.site", "hall-2")
    sites = [site.container(config).cases.preview(folder)[0].site for config in (before, after)]
    assert sites == ["default", "hall-2"]


@changes("app.state_file")
def test_store_lock_requests_and_results_lie_at_the_state_file(site: Site) -> None:
    other = site.home / "other" / "cases.json"
    before, after = site.both("app.state_file", str(other))
    for config, folder in ((before, site.home / "state"), (after, site.home / "other")):
        assert config.paths.local_results == folder / "results"
        container = site.container(config)
        assert not folder.exists()
        assert container.parts.store.instance
        container.lifecycle.acquire_lock()
        container.parts.mailbox.take()
        name = config.app.state_file.name
        assert {name, f"{name}.lock"} <= {path.name for path in folder.iterdir()}


@changes("app.log_file")
def test_the_log_goes_to_its_file(site: Site) -> None:
    path = site.home / "mqi.log"
    before, after = site.both("app.log_file", str(path))
    for config, there in ((before, False), (after, True)):
        site.container(config)
        structlog.get_logger("mqi_hpc.test").info("something")
        assert path.exists() is there
    assert "something" in path.read_text()


@changes("paths.local_logdata")
def test_cases_are_looked_for_in_their_folder(site: Site) -> None:
    other = site.home / "elsewhere"
    put(site.cases / "P001" / "a", other / "P002" / "a")
    before, after = site.both("paths.local_logdata", str(other))
    assert (found(site, before), found(site, after)) == (["P001"], ["P002"])


@changes("paths.remote_workspace")
def test_all_on_the_cluster_lies_below_the_workspace(site: Site) -> None:
    before, after = site.both("paths.remote_workspace", "/scratch/me")
    loops = [Loop(site, config) for config in (before, after)]
    for loop, workspace in zip(loops, ("/work/mqi", "/scratch/me"), strict=True):
        loop.until_begun(Observe, 1)
        (upload,), (submit,) = loop.world.started(Upload), loop.world.started(Submit)
        assert isinstance(upload, Upload)
        assert isinstance(submit, Submit)
        assert upload.input_folder == f"{workspace}/{KEY}/input"
        assert upload.job_folder == submit.job_folder == f"{workspace}/{KEY}/j01"
        assert f"--chdir={workspace}/{KEY}/j01" in upload.files["submit.sh"].decode()
        observe = loop.world.started(Observe)[0]
        assert isinstance(observe, Observe)
        assert workspace in loop.container.parts.renderer.observe_script(observe)


@changes("paths.local_results")
def test_results_come_home_to_their_folder(site: Site) -> None:
    effect, given = a_result(site)
    given["resources"] = {"min_disk_space_gb": 0}
    before, after = site.both("paths.local_results", str(site.home / "delivered"), **given)
    for config, folder in ((before, site.home / "state" / "results"), (after, site.home / "delivered")):
        assert not folder.exists()
        assert one(site.parts(config), effect).error is None
        assert (folder / "P1" / "j01" / "RD.dcm").read_text() == "a dose"


def a_result(site: Site) -> tuple[Download, dict[str, Any]]:
    """A result on this machine as its own cluster: the effect that fetches it, and settings for it."""
    workspace, content = site.home / "cluster", b"a dose"
    folder = workspace / KEY / "j01"
    put(folder / "results" / "RD.dcm", content=content.decode())
    file = ResultFile(
        remote="results/RD.dcm",
        local="RD.dcm",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    effect = replace(DOWNLOAD, job_folder=str(folder), folder="P1/j01", results=(file,), logs=())
    return effect, {"transport": "local", "paths": {"remote_workspace": str(workspace)}}


# The way to the cluster


@changes("transport")
def test_without_ssh_commands_run_here(site: Site) -> None:
    before, after = site.both("transport", "local", processing={"retry_policy": {"max_attempts": 1}})
    with pytest.raises(ConnectionError):
        site.parts(before).shell.run(["true"], timeout=30)
    assert site.parts(after).shell.run(["echo", "here"], timeout=30).stdout == b"here\n"


@pytest.mark.parametrize(
    ("path", "value", "target"),
    [
        ("ssh.host", "login2", "me@login2:1"),
        ("ssh.port", 2222, "me@127.0.0.1:2222"),
        ("ssh.username", "mqi", "mqi@127.0.0.1:1"),
        ("ssh.config_file", "ssh-config", "me@gate:1"),
    ],
)
@changes("ssh.host", "ssh.port", "ssh.username", "ssh.config_file")
def test_where_ssh_goes(site: Site, path: str, value: Any, target: str) -> None:
    (site.home / "ssh-config").write_text("Host 127.0.0.1\n HostName gate\n")
    before, after = site.both(path, value, ssh={"username": "me"})
    assert site.parts(before).shell.target == "me@127.0.0.1:1"
    assert site.parts(after).shell.target == target


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ssh.key_file", "the private key cannot be read"),
        ("ssh.known_hosts", "the known host keys cannot be read"),
    ],
)
@changes("ssh.key_file", "ssh.known_hosts")
def test_what_ssh_trusts_and_offers(site: Site, path: str, said: str) -> None:
    before, after = site.both(path, str(site.home / "gone"), processing={"retry_policy": {"max_attempts": 1}})
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1"):
        site.parts(before).shell.run(["true"], timeout=30)
    with pytest.raises(ConnectionError, match=f"{said}.*/gone") as caught:
        site.parts(after).shell.run(["true"], timeout=30)
    assert str(site.home / "gone") in str(caught.value)


@changes("ssh.connection_pool_size")
def test_all_connections_but_one_are_for_transfers(site: Site) -> None:
    for config, transfers in zip(site.both("ssh.connection_pool_size", 3), (4, 2), strict=True):
        others, shell = set(threading.enumerate()), Gated()
        parts: Any = site.parts(config)
        parts.store, parts.shell = MemoryStore(), shell
        for number in range(10):
            parts.effects.start(replace(DOWNLOAD, job_id=f"{KEY}-j{number + 1:02d}"))
        assert all(shell.begun.acquire(timeout=60) for _ in range(transfers))
        mine = [thread.name for thread in threading.enumerate() if thread not in others]
        assert len([name for name in mine if name.startswith("transfer-")]) == transfers
        parts.close()


@changes("ssh.connect_timeout_seconds")
def test_how_long_a_connection_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def dial(_: object, __: object, timeout: float) -> Any:
        waited.append(timeout)
        raise HostKeyError("nobody is there")

    monkeypatch.setattr(pool_module, "dial", dial)
    for config in site.both("ssh.connect_timeout_seconds", 4):
        with pytest.raises(HostKeyError):
            site.parts(config).shell.run(["true"], timeout=30)
    assert waited == [15, 4]


@changes("ssh.command_timeout_seconds")
def test_how_long_a_command_may_take(site: Site) -> None:
    before, after = site.both("ssh.command_timeout_seconds", 7)
    look = Observe(nonce="n", jobs=(), sacct_ids=())
    assert [limit(site, config, look) for config in (before, after)] == [180, 21]
    assert [limit(site, config, DOWNLOAD) for config in (before, after)] == [60, 7]


@changes("processing.submit_timeout_seconds")
def test_how_long_submit_sh_may_live(site: Site) -> None:
    before, after = site.both("processing.submit_timeout_seconds", 40)
    effect = Submit(case_id=KEY, job_id=f"{KEY}-j01", job_folder=f"/work/mqi/{KEY}/j01", nonce="n")
    assert [limit(site, config, effect) for config in (before, after)] == [300, 40]


def limit(site: Site, config: AppConfig, effect: Effect) -> float:
    """The seconds after which what an effect runs is ended."""
    parts: Any = site.parts(config)
    parts.store, parts.shell = MemoryStore(), (shell := FakeShell(ran()))
    one(parts, effect)
    (call,) = shell.calls
    seconds: float = call[2]["timeout"]
    return seconds


@changes("processing.retry_policy.max_attempts")
def test_how_often_a_connection_is_tried(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def dial(route: object, _: object, __: float) -> Any:
        tries.append(str(route))
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(pool_module, "dial", dial)
    counts = []
    at_once = {"retry_policy": {"base_delay": 0.0}}
    for config in site.both("processing.retry_policy.max_attempts", 2, processing=at_once):
        tries.clear()
        with pytest.raises(ConnectionError):
            site.parts(config).shell.run(["true"], timeout=30)
        counts.append(len(tries))
    assert counts == [3, 2]


RETRY_PATHS = {
    "processing.retry_policy.base_delay": (5.0, [5, 10, 20, 40, 60]),
    "processing.retry_policy.max_delay": (3.0, [1, 2, 3, 3, 3]),
    "processing.retry_policy.exponential_base": (3.0, [1, 3, 9, 27, 60]),
}


@pytest.mark.parametrize("path", RETRY_PATHS)
@changes(*RETRY_PATHS)
def test_how_long_the_cluster_is_left_alone_when_it_does_not_answer(site: Site, path: str) -> None:
    value, waits = RETRY_PATHS[path]
    for config, expected in zip(site.both(path, value), ([1, 2, 4, 8, 16], waits), strict=True):
        loop = Loop(site, config)
        loop.world.away = True
        loop.until_begun(Upload, 6)
        assert loop.gaps(Upload) == pytest.approx(expected, abs=0.05)


# The scan


def put(*paths: Path, content: str = "x") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def scan(site: Site, config: AppConfig, *times: float) -> ScanReport:
    """The report of the last of the scans at these times (s)."""
    parts: Any = site.parts(config)
    parts.clock = clock = Clock()
    report: object = None
    for time in times:
        clock.time = time
        report = parts.scanner.scan(Scan(known=())).payload
    assert isinstance(report, ScanReport)
    assert report.error == ""
    return report


def found(site: Site, config: AppConfig) -> list[str]:
    """The names of what a first scan takes for case folders."""
    return sorted(Path(folder).name for folder, _ in scan(site, config, 0).waiting)


def is_read(site: Site, config: AppConfig, *times: float) -> bool:
    """Whether the one folder there is read at the last of these times."""
    return len(scan(site, config, *times).read) == 1


@changes("processing.ready")
def test_what_makes_a_case_ready(site: Site) -> None:
    put(site.cases / "P001" / "a")
    before, after = site.both("processing.ready", "marker")
    assert (is_read(site, before, 0, 301), is_read(site, after, 0, 301)) == (True, False)


@changes("processing.quiet_seconds")
def test_how_long_makes_quiet(site: Site) -> None:
    put(site.cases / "P001" / "a")
    before, after = site.both("processing.quiet_seconds", 30)
    assert (is_read(site, before, 0, 31), is_read(site, after, 0, 31)) == (False, True)
    assert is_read(site, before, 0, 301)


@changes("processing.ignore")
def test_names_that_are_passed_over(site: Site) -> None:
    put(site.cases / "P001" / "a", site.cases / "backup.d" / "a")
    before, after = site.both("processing.ignore", ["*.d"])
    assert (found(site, before), found(site, after)) == (["P001", "backup.d"], ["P001"])


@changes("processing.room_level")
def test_rooms(site: Site) -> None:
    put(site.cases / "G1" / "P001" / "a", site.cases / "G1" / "P002" / "a")
    before, after = site.both("processing.room_level", True)
    assert (found(site, before), found(site, after)) == (["G1"], ["P001", "P002"])


@changes("processing.fraction_gap_seconds")
def test_what_opens_a_new_fraction(site: Site) -> None:
    case = site.case_folder()
    shutil.rmtree(case.deliveries[3])
    deliver(case, 3, START + timedelta(minutes=50))
    before, after = site.both("processing.fraction_gap_seconds", 1800)
    now = (START + timedelta(hours=30)).timestamp()
    results = [
        site.parts(config).reader.read(str(case.folder), chosen=None, now=now) for config in (before, after)
    ]
    assert [len(result.fractions) for result in results] == [1, 0]
    assert [len(result.rejected) for result in results] == [0, 2]


@changes("processing.scan_interval_seconds")
def test_how_often_cases_are_looked_for(site: Site) -> None:
    for config, interval in zip(site.both("processing.scan_interval_seconds", 7), (60, 7), strict=True):
        loop = Loop(site, config, cases=())
        loop.until_begun(Scan, 4)
        assert loop.gaps(Scan) == pytest.approx([interval] * 3, abs=0.05)


# The loop


class Cluster(World):
    """The scripted cluster: notes when each effect is begun; `away`: it cannot be reached."""

    store: MemoryStore
    away = False

    def start(self, effect: Effect) -> None:
        self.times.append((self.clock.time, effect))
        super().start(effect)

    @property
    def times(self) -> list[tuple[float, Effect]]:
        noted: list[tuple[float, Effect]] = self.__dict__.setdefault("noted", [])
        return noted

    def _answer(self, effect: Effect) -> Completion:
        if isinstance(effect, Scan):
            return Completion(effect=effect, payload=ScanReport())
        if self.away:
            return Completion(effect=effect, error="no route", failure=Failure.OUTAGE)
        if isinstance(effect, Submit):
            with self.store.transaction(write=False) as unit:
                job = unit.jobs.get(effect.job_id)
            assert job is not None
            self.names = {s.stage: s.name for s in job.submissions}
        return super()._answer(effect)


class Sink:
    """What is published, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.metric_times: list[float] = []
        self.healths: list[tuple[float, Health]] = []

    def metrics(self, _: Sequence[Metric]) -> None:
        self.metric_times.append(self.clock.time)

    def health(self, health: Health) -> None:
        self.healths.append((self.clock.time, health))


@dataclass
class Loop:
    """The daemon as the container wires it, on a store in memory, a scripted cluster, and a clock of ours."""

    site: Site
    config: AppConfig
    cases: tuple[Case, ...] = field(default_factory=lambda: (make_case(2),))
    quiet: bool = True
    """Nothing is published to files."""

    def __post_init__(self) -> None:
        self.clock, self.store, self.probe = Clock(), MemoryStore(), Probe()
        self.world, self.sink = Cluster(self.clock), Sink(self.clock)
        self.world.store = self.store
        self.container = self.site.container(self.config)
        parts: Any = self.container.parts
        parts.clock, parts.ids, parts.store = self.clock, Ids(), self.store
        parts.effects, parts.probe = self.world, self.probe
        if self.quiet:
            parts.sink = self.sink
        with self.store.transaction() as unit:
            for case in self.cases:
                unit.cases.put(case)

    def run(self, enough: Callable[[], bool], most: float = 20_000.0) -> None:
        """Run the daemon until `enough`; fails where that does not come within `most` of its seconds."""
        end = self.clock.time + most

        def stopping() -> bool:
            assert self.clock.time < end, f"not so after {most:.0f} s"
            return enough()

        self.container.daemon.run(stopping=stopping, reloading=lambda: False)

    def turns(self, count: int) -> None:
        left = iter(range(count))
        self.run(lambda: next(left, None) is None)

    def gaps(self, kind: type) -> list[float]:
        """The seconds from each effect of a kind to the next."""
        return gaps([time for time, effect in self.world.times if isinstance(effect, kind)])

    def task(self, name: str) -> TaskStatus:
        with self.store.transaction(write=False) as unit:
            (task,) = [task for task in unit.jobs.tasks(f"{KEY}-j01") if task.task_id.endswith(f"/{name}")]
        return task.status

    def until_begun(self, kind: type, count: int) -> None:
        self.run(lambda: len(self.world.started(kind)) >= count)

    def until_published(self, count: int, what: str) -> None:
        self.run(lambda: len(getattr(self.sink, what)) >= count)

    def interpret_lasts(self, word: str | None) -> float:
        """Let interpret end so in Slurm (None: vanish) at the first poll; return how long we wait on."""
        began: list[float] = []

        def on_poll() -> None:
            if not began:
                began.append(self.clock.time)
                if word is None:
                    self.world.rows.clear()
                else:
                    self.world.end("interpret", word)

        self.world.on_poll = on_poll
        self.run(lambda: bool(began) and self.task("interpret").terminal)
        return self.clock.time - began[0]


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


@changes("resources.max_concurrent_jobs")
def test_most_cases_in_flight(site: Site) -> None:
    cases = tuple(make_case(2, key=f"case{n:08d}") for n in range(12))
    counts = []
    for config in site.both("resources.max_concurrent_jobs", 2):
        loop = Loop(site, config, cases)
        loop.world.silent = {Upload}
        loop.turns(5)
        counts.append(len(loop.world.started(Upload)))
    assert counts == [10, 2]


@changes("resources.gpu_count")
def test_our_budget_of_gpus_throttles_arrays_and_holds_cases_back(site: Site) -> None:
    before, after = site.both("resources.gpu_count", 3)
    cases = tuple(make_case(2, key=f"case{n:08d}") for n in range(3))
    sent = []
    for config in (before, after):
        loop = Loop(site, config, cases)
        loop.world.silent = {Submit}
        loop.turns(20)
        sent.append(len(loop.world.started(Submit)))
    assert sent == [3, 1]
    assert (option(before, "array", ["beams"]), option(after, "array", ["beams"])) == (["0-2"], ["0-2%3"])


@changes("processing.poll_min_seconds")
def test_shortest_time_between_polls(site: Site) -> None:
    shortest = []
    for config in site.both("processing.poll_min_seconds", 2):
        loop = Loop(site, config)
        loop.until_begun(Observe, 21)
        shortest.append(min(loop.gaps(Observe)))
    assert shortest[0] >= 10
    assert 2 <= shortest[1] < 10


@changes("processing.poll_max_seconds")
def test_longest_time_between_polls(site: Site) -> None:
    longest = []
    for config in site.both("processing.poll_max_seconds", 30):
        loop = Loop(site, config)
        loop.until_begun(Observe, 21)
        longest.append(max(loop.gaps(Observe)))
    assert longest == pytest.approx([180, 30], abs=0.05)


OFTEN = {"poll_min_seconds": 5, "poll_max_seconds": 5}


@changes("processing.t_settle_seconds")
def test_how_long_a_record_is_waited_for(site: Site) -> None:
    waits = []
    for config in site.both("processing.t_settle_seconds", 20, processing=OFTEN):
        loop = Loop(site, config)
        waits.append(loop.interpret_lasts("COMPLETED"))
        assert loop.task("interpret") is TaskStatus.FAILED
    assert 120 <= waits[0] < 180
    assert 20 <= waits[1] < 60


@changes("processing.t_lag_seconds")
def test_how_long_accounting_may_say_nothing(site: Site) -> None:
    waits = []
    for config in site.both("processing.t_lag_seconds", 60, processing=OFTEN):
        loop = Loop(site, config)
        waits.append(loop.interpret_lasts(None))
        assert loop.task("interpret") is TaskStatus.LOST
    assert waits[0] >= 600
    assert 60 <= waits[1] < 600


@changes("processing.debounce_seconds")
def test_when_a_node_failure_is_believed(site: Site) -> None:
    waits = []
    for config in site.both("processing.debounce_seconds", 300, processing=OFTEN):
        loop = Loop(site, config)
        waits.append(loop.interpret_lasts("NODE_FAIL"))
        assert loop.task("interpret") is TaskStatus.FAILED
    assert 60 <= waits[0] < 300
    assert 300 <= waits[1] < 400


# What is done again by itself


def retried(site: Site, config: AppConfig, *words: str) -> list[Decision]:
    """What follows a beam's end, again and again, for these words of Slurm in turn (GPU: its check failed).

    Ends with the first after which a person is asked.
    """
    table = site.parts(config).retry_table
    case, store = make_case(1), MemoryStore()
    jobs: list[Job] = []
    tasks: dict[str, list[Task]] = {}
    found: list[Decision] = []
    resources = ResourceService(store, gpu_count=None, min_disk_space_gb=0, free_bytes=lambda: 1)
    service = JobService(store, PlainRenderer(), resources, Clock(), workspace="/work")
    with store.transaction() as unit:
        unit.cases.put(case)
    for word in itertools.cycle(words):
        with store.transaction() as unit:
            job = service.plan(unit, case, first_plan(case)).evolve(automatic=bool(jobs))
            task = next(t for t in unit.jobs.tasks(job.job_id) if t.type == "beam_calc")
        task = task.evolve(status=TaskStatus.FAILED, phase="failed", node="g1")
        task = task.evolve(exit_code=77) if word == "GPU" else task.evolve(slurm=word)
        if word == "BURNT":
            job = job.evolve(submit_state=SubmitState.BURNT)
        history = History(jobs=(*jobs, job), tasks={**tasks, job.job_id: [task]})
        decision = decide(history, job, task, table, 0.0)
        assert decision is not None
        found.append(decision)
        if decision.retry is None:
            return found
        jobs.append(job)
        tasks[job.job_id] = [task.evolve(retry=decision.retry)]
    raise AssertionError("it never ends")


def pauses(decisions: Sequence[Decision]) -> list[float]:
    return [decision.retry.pause for decision in decisions if decision.retry is not None]


USUAL = [60, 300, 1200]
RULES = [  # section, word, another cause that is counted, most, pauses, and how many retries of both in turn
    ("node_fail", "NODE_FAIL", "BOOT_FAIL", USUAL, 3, 6),
    ("boot_fail", "BOOT_FAIL", "NODE_FAIL", USUAL, 3, 6),
    ("gpu_check", "GPU", "NODE_FAIL", USUAL, 3, 6),
    ("preempted", "PREEMPTED", "NODE_FAIL", [60, 300, 900, *[1800] * 47], 7, 3),
    ("out_of_memory", "OUT_OF_MEMORY", "NODE_FAIL", USUAL, 3, 6),
    ("timeout", "TIMEOUT", "NODE_FAIL", USUAL, 3, 6),
    ("burnt", "BURNT", "NODE_FAIL", USUAL, 3, 6),
]
TURNED_ON = {
    "out_of_memory": {"most": 3, "memory_maximum": "64G"},
    "timeout": {"most": 3, "time_maximum": "2-00"},
}


def under(rule: str) -> str:
    return f"processing.retries.{rule}"


@pytest.mark.parametrize(
    ("path", "rule", "word", "usual"), [(under(f"{rule[0]}.most"), *rule[:2], rule[3]) for rule in RULES]
)
@changes(*(under(f"{rule[0]}.most") for rule in RULES))
def test_how_often_a_cause_is_retried(
    site: Site, path: str, rule: str, word: str, usual: list[float]
) -> None:
    on = {name: value for name, value in TURNED_ON.get(rule, {}).items() if name != "most"}
    before, after = site.both(path, 1, processing={"retries": {rule: on}})
    assert pauses(retried(site, before, word)) == ([] if rule in TURNED_ON else usual)
    assert pauses(retried(site, after, word)) == [60]
    (_, off) = site.both(path, 0) if rule not in TURNED_ON else (None, None)
    assert off is None or pauses(retried(site, off, word)) == []


@pytest.mark.parametrize(
    ("path", "rule", "word", "usual"),
    [(under(f"{rule[0]}.pauses_seconds"), *rule[:2], rule[3]) for rule in RULES],
)
@changes(*(under(f"{rule[0]}.pauses_seconds") for rule in RULES))
def test_how_long_a_retry_waits(site: Site, path: str, rule: str, word: str, usual: list[float]) -> None:
    before, after = site.both(path, [5, 7], processing={"retries": {rule: TURNED_ON.get(rule, {})}})
    assert pauses(retried(site, before, word)) == usual
    assert pauses(retried(site, after, word)) == [5, *[7] * (len(usual) - 1)]


@pytest.mark.parametrize(
    ("path", "rule", "words", "by_itself", "other"),
    [(under(f"{rule[0]}.counted"), rule[0], rule[1:3], *rule[4:]) for rule in RULES],
)
@changes(*(under(f"{rule[0]}.counted") for rule in RULES))
def test_what_uses_up_the_common_count(
    site: Site, path: str, rule: str, words: tuple[str, str], by_itself: int, other: int
) -> None:
    value = rule == "preempted"
    before, after = site.both(path, value, processing={"retries": {rule: TURNED_ON.get(rule, {})}})
    assert len(pauses(retried(site, before, *words))) == by_itself
    assert len(pauses(retried(site, after, *words))) == other


@changes("processing.retries.most")
def test_how_often_anything_is_retried(site: Site) -> None:
    before, after = site.both("processing.retries.most", 1)
    assert pauses(retried(site, before, "NODE_FAIL", "BOOT_FAIL")) == [60, 60, 300]
    assert pauses(retried(site, after, "NODE_FAIL", "BOOT_FAIL")) == [60]


@pytest.mark.parametrize(
    ("path", "word", "usual"),
    [
        (under("node_fail.leave_out_seconds"), "NODE_FAIL", 14400),
        (under("boot_fail.leave_out_seconds"), "BOOT_FAIL", 14400),
        (under("gpu_check.leave_out_seconds"), "GPU", 86400),
    ],
)
@changes(*(under(f"{rule}.leave_out_seconds") for rule in ("node_fail", "boot_fail", "gpu_check")))
def test_how_long_a_node_is_left_out(site: Site, path: str, word: str, usual: float) -> None:
    before, after = site.both(path, 0)
    assert {decision.leave_out for decision in retried(site, before, word)} == {usual}
    assert {decision.leave_out for decision in retried(site, after, word)} == {0}


@changes("processing.retries.most_left_out")
def test_how_many_nodes_are_left_out(site: Site) -> None:
    left = []
    for config in site.both("processing.retries.most_left_out", 1):
        container, case = site.container(config), make_case(4, key=f"case{len(left):08d}")
        with container.parts.store.transaction() as unit:
            unit.cases.put(case)
            first = container.jobs.plan(unit, case, first_plan(case))
            now = container.parts.clock.now()
            beams = [task for task in unit.jobs.tasks(first.job_id) if task.type == "beam_calc"]
            for number, task in enumerate(beams):
                ended = task.evolve(status=TaskStatus.FAILED, node=f"g{number}", ended_at=now - 100 + number)
                unit.jobs.put_task(ended.evolve(left_out_until=now + 3600))
            left.append(container.jobs.plan(unit, case, first_plan(case)).left_out)
            for task in beams:
                unit.jobs.put_task(task)
    assert left == [("g1", "g2", "g3"), ("g3",)]


def most_asked(site: Site, config: AppConfig, word: str) -> list[Asked]:
    """What the beams ask for, retry after retry."""
    causes = [one.retry.cause for one in retried(site, config, word) if one.retry is not None]
    table = site.parts(config).retry_table
    return [table.asks("beams", causes[:count]) for count in range(len(causes) + 1)]


@pytest.mark.parametrize(
    ("path", "value", "usual", "then"),
    [
        (under("out_of_memory.memory_factor"), 2.0, [4096, 6144, 9216, 13824], [4096, 8192, 16384, 32768]),
        (under("out_of_memory.memory_maximum"), "8G", [4096, 6144, 9216, 13824], [4096, 6144, 8192]),
    ],
)
@changes(under("out_of_memory.memory_factor"), under("out_of_memory.memory_maximum"))
def test_how_much_more_memory(site: Site, path: str, value: Any, usual: list[int], then: list[int]) -> None:
    on = {"processing": {"retries": {"out_of_memory": TURNED_ON["out_of_memory"]}}}
    before, after = site.both(path, value, **on)
    assert [asked.memory for asked in most_asked(site, before, "OUT_OF_MEMORY")] == usual
    assert [asked.memory for asked in most_asked(site, after, "OUT_OF_MEMORY")] == then


@pytest.mark.parametrize(
    ("path", "value", "usual", "then"),
    [
        (under("timeout.time_factor"), 2.0, [3600, 5400, 8100, 12150], [3600, 7200, 14400, 28800]),
        (under("timeout.time_maximum"), "2:00:00", [3600, 5400, 8100, 12150], [3600, 5400, 7200]),
    ],
)
@changes(under("timeout.time_factor"), under("timeout.time_maximum"))
def test_how_much_more_time(site: Site, path: str, value: Any, usual: list[int], then: list[int]) -> None:
    on = {"processing": {"retries": {"timeout": TURNED_ON["timeout"]}}}
    before, after = site.both(path, value, **on)
    assert [asked.time for asked in most_asked(site, before, "TIMEOUT")] == usual
    assert [asked.time for asked in most_asked(site, after, "TIMEOUT")] == then


@pytest.mark.parametrize(
    ("rule", "wanted"), [("out_of_memory", "memory_maximum"), ("timeout", "time_maximum")]
)
def test_more_without_a_bound_is_refused(site: Site, rule: str, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{wanted} should be given"):
        site.both(f"processing.retries.{rule}.most", 2)


@changes("slurm.accounting")
def test_whether_accounting_is_asked(site: Site) -> None:
    asked_for = []
    for config in site.both("slurm.accounting", "off", processing=OFTEN):
        loop = Loop(site, config)
        loop.interpret_lasts(None)
        looks = [effect for effect in loop.world.started(Observe) if isinstance(effect, Observe)]
        asked_for.append(any(look.sacct_ids for look in looks))
    assert asked_for == [True, False]


@changes("resources.min_disk_space_gb")
def test_without_space_nothing_is_begun(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(site.case_folder().folder)
    for config, error in zip(
        site.both("resources.min_disk_space_gb", 300), (Begun, ResourceError), strict=True
    ):
        loop = Loop(site, config, cases=())
        monkeypatch.setattr(loop.container.parts, "free_bytes", lambda: 200 * _GB)
        monkeypatch.setattr(loop.world, "start", begun)
        with pytest.raises(error, match=r"Upload|min_disk_space_gb asks for 300"):
            loop.container.application.submit(folder, None, wait=False)


def test_without_space_nothing_is_fetched_and_health_says_so(site: Site) -> None:
    effect, given = a_result(site)
    pair = site.both("resources.min_disk_space_gb", 1e9, resources={"min_disk_space_gb": 0}, **given)
    assert [one(site.parts(config), effect).failure for config in reversed(pair)] == [Failure.SPACE, None]
    status = []
    for config in pair:
        loop = Loop(site, config, cases=())
        loop.turns(2)
        status.append(loop.sink.healths[0][1].status)
    assert status == [HealthStatus.OK, HealthStatus.FAILING]


class Begun(BaseException):
    """An effect was started: no error, so nothing takes it for one."""


def begun(effect: Effect) -> None:
    raise Begun(type(effect).__name__)


# What is published


@changes("monitoring.metrics_interval_seconds")
def test_how_often_metrics_are_published(site: Site) -> None:
    for config, interval in zip(site.both("monitoring.metrics_interval_seconds", 5), (30, 5), strict=True):
        loop = Loop(site, config, cases=())
        loop.until_published(5, "metric_times")
        assert gaps(loop.sink.metric_times) == pytest.approx([interval] * 4, abs=1.01)


@changes("monitoring.health_check_interval_seconds")
def test_how_often_health_is_published(site: Site) -> None:
    for config, interval in zip(
        site.both("monitoring.health_check_interval_seconds", 9), (60, 9), strict=True
    ):
        loop = Loop(site, config, cases=())
        loop.until_published(5, "healths")
        times = [time for time, _ in loop.sink.healths[:5]]
        assert gaps(times) == pytest.approx([interval] * 4, abs=1.01)
        assert {health.interval for _, health in loop.sink.healths} == {interval}


@pytest.mark.parametrize(
    ("path", "usual"),
    [("monitoring.metrics_file", "metrics.prom"), ("monitoring.health_file", "health.json")],
)
@changes("monitoring.metrics_file", "monitoring.health_file")
def test_where_it_is_published(site: Site, path: str, usual: str) -> None:
    before, after = site.both(path, str(site.home / "told" / "here"))
    Loop(site, before, cases=(), quiet=False).turns(2)
    assert (site.home / "state" / usual).exists()
    (site.home / "state" / usual).unlink()
    Loop(site, after, cases=(), quiet=False).turns(2)
    assert (site.home / "told" / "here").exists()
    assert not (site.home / "state" / usual).exists()


@changes("retention.min_free_percent")
def test_the_share_of_space_below_which_a_prune_is_asked_for(site: Site) -> None:
    said = []
    for config in site.both("retention.min_free_percent", 20):
        loop = Loop(site, config, cases=())
        path = str(config.paths.local_results)
        usage = DiskUsage(path=path, total=10_000 * _GB, used=9_000 * _GB, free=1_000 * _GB, device=1)
        loop.probe.disks[path] = DiskReading(path=path, usage=usage, age=1.0)
        loop.turns(2)
        findings = loop.sink.healths[0][1].findings
        said.append([finding.cure for finding in findings if "min_free_percent" in finding.what])
    assert said == [[], ["`mqi-hpc prune` shows what may go"]]


# What may go


def may_go(site: Site, config: AppConfig, history: JobHistory) -> tuple[bool, bool]:
    """Whether the remote folder and the results of a case may go."""
    store = MemoryStore()
    with store.transaction() as unit:
        unit.cases.put(case_of(history))
        unit.jobs.put(history.job)
        for task in history.tasks:
            unit.jobs.put_task(task)
    container = site.container(config)
    container.parts.store = store
    (plan,) = container.retention.plan(NOW).cases
    return plan.remote.allowed, plan.local.allowed


FAILED = job_with(days=20, beams=(TaskStatus.COMPLETED, TaskStatus.FAILED))


@pytest.mark.parametrize(
    ("path", "value", "history", "was", "now"),
    [
        ("retention.remote_completed_days", 30.0, job_with(days=20), (True, False), (False, False)),
        ("retention.remote_failed_days", 10.0, FAILED, (False, False), (True, False)),
        ("retention.local_results_days", 10.0, job_with(days=20), (True, False), (True, True)),
    ],
)
@changes("retention.remote_completed_days", "retention.remote_failed_days", "retention.local_results_days")
def test_when_things_may_go(
    site: Site, path: str, value: float, history: JobHistory, was: tuple[bool, bool], now: tuple[bool, bool]
) -> None:
    before, after = site.both(path, value)
    assert may_go(site, before, history) == was
    assert may_go(site, after, history) == now
