"""Settings: `ConfigLoader().load(path)` gives an `AppConfig` or says everything that is wrong."""

from mqi_hpc.infrastructure.config.loader import ConfigLoader
from mqi_hpc.infrastructure.config.models import AppConfig, SSHConfig
from mqi_hpc.infrastructure.config.physics import MachineConfig, MoquiConfig, default_machines
from mqi_hpc.infrastructure.config.slurm import SlurmConfig
from mqi_hpc.infrastructure.config.validator import ConfigValidator

__all__ = [
    "AppConfig",
    "ConfigLoader",
    "ConfigValidator",
    "MachineConfig",
    "MoquiConfig",
    "SSHConfig",
    "SlurmConfig",
    "default_machines",
]
