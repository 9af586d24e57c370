"""Slurm-native submitter for proton beam QA."""

__version__ = "0.1.0"
