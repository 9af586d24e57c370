"""Settings of what Slurm is asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mqi_hpc.infrastructure.config.types import (
    Count,
    LocalPath,
    OneLine,
    Section,
    SlurmMemory,
    SlurmName,
    SlurmTime,
    Strings,
)

# Options this program sets itself: another value would break what makes submission safe.
OWNED_OPTIONS = frozenset(
    {
        "--array",
        "--chdir",
        "--comment",
        "--dependency",
        "--error",
        "--export",
        "--export-file",
        "--hold",
        "--input",
        "--job-name",
        "--kill-on-invalid-dep",
        "--no-requeue",
        "--output",
        "--parsable",
        "--requeue",
        "--wait",
        "--wrap",
    }
)


class SlurmStageConfig(Section):
    """What one stage asks Slurm for."""

    partition: SlurmName | None = Field(default=None, description="Partition; default: slurm.partition.")
    time: SlurmTime = Field(default="01:00:00", description="Time limit.")
    memory: SlurmMemory = Field(default="4G", description="Memory of a task.")
    cpus: Count = Field(default=1, description="CPUs of a task.")
    extra: Strings = Field(default=(), description="More sbatch options, each like --constraint=a100.")

    @field_validator("extra")
    @classmethod
    def _options(cls, extra: tuple[str, ...]) -> tuple[str, ...]:
        for option in extra:
            name = option.partition("=")[0]
            if not option.startswith("--") or not option.isprintable():
                raise ValueError(f"{option!r} should be a long option in one word, like --constraint=a100")
            # sbatch takes any unique beginning of an option for the option.
            if any(owned.startswith(name) for owned in OWNED_OPTIONS):
                raise ValueError(f"{name} is set by this program itself and cannot be given here")
        return extra


class SlurmStagesConfig(Section):
    """The three stages of a chain."""

    interpret: SlurmStageConfig = Field(default_factory=SlurmStageConfig, description="Logs to engine input.")
    beams: SlurmStageConfig = Field(default_factory=SlurmStageConfig, description="Dose, one task a beam.")
    convert: SlurmStageConfig = Field(default_factory=SlurmStageConfig, description="Dose to RT Dose.")


class SlurmConfig(Section):
    """What Slurm is asked for, and how."""

    partition: SlurmName | None = Field(default=None, description="Partition; default: Slurm's own.")
    account: SlurmName | None = Field(default=None, description="Account to charge.")
    qos: SlurmName | None = Field(default=None, description="Quality of service.")
    gres: SlurmName = Field(default="gpu:1", description="Generic resource of one beam.")
    prologue: str = Field(default="", description="Shell lines before each stage, like: module load cuda.")
    backend: Literal["cli"] = Field(default="cli", description="How Slurm is spoken to.")
    templates: LocalPath | None = Field(
        default=None, description="Folder of templates that replace ours by name."
    )
    comment: OneLine | None = Field(default=None, description="Job comment: who runs this, whom to ask.")
    accounting: Literal["auto", "on", "off"] = Field(
        default="auto", description="Whether sacct can be relied on."
    )
    stages: SlurmStagesConfig = Field(default_factory=SlurmStagesConfig, description="Per stage.")
