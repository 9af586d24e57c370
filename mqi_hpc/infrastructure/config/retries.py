"""Settings of what is done again by itself, by cause. Times in seconds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mqi_hpc.infrastructure.config.types import Count, Seconds, Section, SlurmMemory, SlurmTime

Pauses = Annotated[tuple[Seconds, ...], Field(strict=False, min_length=1)]
_Most = Annotated[int, Field(ge=0)]
_Factor = Annotated[float, Field(gt=1, allow_inf_nan=False)]
_PAUSES: tuple[float, ...] = (60.0, 300.0, 1200.0)


class RetryRuleConfig(Section):
    """How one cause is retried."""

    most: _Most = Field(default=3, description="Retries of a beam in a row for this cause; 0: none.")
    pauses_seconds: Pauses = Field(default=_PAUSES, description="Before each; the last stays.")
    counted: bool = Field(default=True, description="Uses up retries.most.")


class NodeRetryConfig(RetryRuleConfig):
    """How a cause is retried that lies with a node."""

    leave_out_seconds: Seconds = Field(
        default=14400, description="New beams keep away from the node for so long; 0: they do not."
    )


class GpuRetryConfig(NodeRetryConfig):
    """How a beam is retried whose node gave it no GPU that works: that is mended by hand."""

    leave_out_seconds: Seconds = Field(
        default=86400, description="New beams keep away from the node for so long; 0: they do not."
    )


class PreemptedRetryConfig(RetryRuleConfig):
    """How what had to make room is retried: as often as it takes, and never in haste."""

    most: _Most = Field(default=50, description="Retries of a beam in a row for this cause; 0: none.")
    pauses_seconds: Pauses = Field(
        default=(60.0, 300.0, 900.0, 1800.0), description="Before each; the last stays."
    )
    counted: bool = Field(default=False, description="Uses up retries.most.")


class MemoryRetryConfig(RetryRuleConfig):
    """How a stage that ran out of memory is retried."""

    most: _Most = Field(default=0, description="Retries of a beam in a row for this cause; 0: none.")
    memory_factor: _Factor = Field(default=1.5, description="Times the memory asked for before.")
    memory_maximum: SlurmMemory | None = Field(default=None, description="Never more than this.")

    @model_validator(mode="after")
    def _bounded(self) -> MemoryRetryConfig:
        if self.most and self.memory_maximum is None:
            raise ValueError("memory_maximum should be given where most is not 0: a node's memory, say")
        return self


class TimeRetryConfig(RetryRuleConfig):
    """How a stage that ran into its time limit is retried."""

    most: _Most = Field(default=0, description="Retries of a beam in a row for this cause; 0: none.")
    time_factor: _Factor = Field(default=1.5, description="Times the time asked for before.")
    time_maximum: SlurmTime | None = Field(
        default=None, description="Never more than this: the partition's limit."
    )

    @model_validator(mode="after")
    def _bounded(self) -> TimeRetryConfig:
        if self.most and self.time_maximum is None:
            raise ValueError("time_maximum should be given where most is not 0: the partition's limit")
        return self


class RetriesConfig(Section):
    """What is done again by itself, in a job of its own; all else asks for a person."""

    most: Count = Field(default=3, description="Counted retries of a beam in a row, over all causes.")
    most_left_out: Count = Field(
        default=3, description="Nodes that new beams keep away from at once; of more, the oldest go."
    )
    node_fail: NodeRetryConfig = Field(default_factory=NodeRetryConfig, description="Slurm: NODE_FAIL.")
    boot_fail: NodeRetryConfig = Field(default_factory=NodeRetryConfig, description="Slurm: BOOT_FAIL.")
    gpu_check: GpuRetryConfig = Field(
        default_factory=GpuRetryConfig, description="A beam found no working GPU (exit code 77)."
    )
    preempted: PreemptedRetryConfig = Field(
        default_factory=PreemptedRetryConfig, description="Slurm: PREEMPTED."
    )
    out_of_memory: MemoryRetryConfig = Field(
        default_factory=MemoryRetryConfig, description="Slurm: OUT_OF_MEMORY, of the node, not of a GPU."
    )
    timeout: TimeRetryConfig = Field(default_factory=TimeRetryConfig, description="Slurm: TIMEOUT.")
    burnt: RetryRuleConfig = Field(
        default_factory=RetryRuleConfig,
        description="Slurm lost the chain, and nobody cancelled it.",
    )
