"""Case folders: found, read into plain values, and written as synthetic samples."""

from mqi_hpc.infrastructure.intake.reader import CaseReader
from mqi_hpc.infrastructure.intake.sample import add_fraction, write_delivery, write_sample_case
from mqi_hpc.infrastructure.intake.scanner import FolderScanner

__all__ = ["CaseReader", "FolderScanner", "add_fraction", "write_delivery", "write_sample_case"]
