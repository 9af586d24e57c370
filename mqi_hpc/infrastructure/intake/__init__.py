"""Case folders: read into plain values, and written as synthetic samples."""

from mqi_hpc.infrastructure.intake.reader import CaseReader
from mqi_hpc.infrastructure.intake.sample import write_delivery, write_sample_case

__all__ = ["CaseReader", "write_delivery", "write_sample_case"]
