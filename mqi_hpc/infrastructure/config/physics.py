"""Settings with a physical meaning: log calibration of a machine, parameters of the dose engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mqi_hpc.infrastructure.config.types import (
    Count,
    FactorByDigit,
    Ints3,
    Number,
    Numbers3,
    OneLine,
    PositiveNumber,
    Section,
    Sizes3,
)


def _default_factors() -> dict[str, float]:
    return {"2": 1.0, "3": 2.9787234, "4": 8.9361702, "5": 26.8085106}


class MachineConfig(Section):
    """How a machine's log values become millimetres and monitor units."""

    x_offset: Number = Field(description="Log value (ADC counts) at x = 0.")
    y_offset: Number = Field(description="Log value (ADC counts) at y = 0.")
    x_gain: Number = Field(description="Millimetres per ADC count in x.")
    y_gain: Number = Field(description="Millimetres per ADC count in y.")
    row_period_ms: PositiveNumber = Field(default=0.06, description="Time of one log row in ms.")
    dose1_factors: FactorByDigit = Field(
        default_factory=_default_factors, description="Dose factor by the monitor range's digit."
    )
    gantry_number: int = Field(description="The gantry's number in the engine's input.", ge=0)


def default_machines() -> dict[str, MachineConfig]:
    """The two gantries known to the reference interpreter."""
    return {
        "G1": MachineConfig(
            x_offset=16384, y_offset=16384, x_gain=0.010959, y_gain=0.0116412, gantry_number=1
        ),
        "G2": MachineConfig(
            x_offset=24580, y_offset=32772, x_gain=0.00726, y_gain=0.0071411, gantry_number=2
        ),
    }


class GridConfig(Section):
    """The dose grid, x, y, z."""

    size: Ints3 = Field(default=(200, 200, 400), description="Voxels.")
    spacing: Sizes3 = Field(default=(2.0, 2.0, 1.0), description="Voxel size in whole mm.")
    position: Numbers3 = Field(
        default=(-200.0, -200.0, -380.0), description="Lower corner of the first voxel in whole mm."
    )

    @field_validator("spacing", "position")
    @classmethod
    def _whole(cls, values: tuple[float, float, float]) -> tuple[float, float, float]:
        # Public engine forks read them with atoi: 2.5 would silently become 2.
        if any(value != int(value) for value in values):
            raise ValueError("should be whole millimetres: the engine reads nothing else")
        return values


class MoquiConfig(Section):
    """Parameters of the dose engine."""

    log_dialect: Literal["rows", "flat"] = Field(default="rows", description="Form of the interpreted log.")
    grid: GridConfig = Field(default_factory=GridConfig, description="Dose grid.")
    random_seed_base: int = Field(default=1000, ge=0, description="A beam's seed is this plus its number.")
    max_histories_per_batch: Count = Field(
        default=10_000_000, description="Histories computed at once on the GPU."
    )
    particles_per_history: PositiveNumber = Field(
        default=1.0, description="Protons that one history stands for."
    )
    extra: dict[str, OneLine] = Field(default_factory=dict, description="More lines of the engine's input.")
    dose_type: Literal["PHYSICAL", "EFFECTIVE"] = Field(default="PHYSICAL", description="RT Dose's DoseType.")
