"""A configuration file to settings."""

from __future__ import annotations

from pathlib import Path

import yaml

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config.models import AppConfig
from mqi_hpc.infrastructure.config.source import read_yaml
from mqi_hpc.infrastructure.config.validator import ConfigValidator


class ConfigLoader:
    """Reads a YAML file; needs no network and none of the paths it names."""

    def __init__(self, validator: ConfigValidator | None = None) -> None:
        self._validator = validator or ConfigValidator()

    def load(self, path: Path) -> AppConfig:
        """The settings in `path`. ConfigurationError lists every fault with file, line and key."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(
                f"cannot read the configuration: {reason}",
                where=str(path),
                fix="Name a file with --config; config/example.yaml shows one",
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigurationError("is not UTF-8 text", where=str(path)) from error
        return self.parse(text, path)

    def parse(self, text: str, path: Path) -> AppConfig:
        """The settings in `text`; messages and relative paths go by `path`."""
        try:
            source = read_yaml(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            raise ConfigurationError(f"is not YAML: {error.problem}", where=f"{path}:{line}") from error
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigurationError(f"is not YAML: {error}", where=str(path)) from error
        if not isinstance(source.values, dict):
            raise ConfigurationError(
                "holds no settings", where=str(path), fix="config/example.yaml shows what belongs there"
            )
        config, problems = self._validator.validate(source.values, path.absolute().parent)
        found = [*source.faults, *((problem.where, problem.message) for problem in problems)]
        if config is None or found:
            lines = sorted((source.line(where), ".".join(where), message) for where, message in found)
            raise ConfigurationError(
                "\n".join(f"{path}:{line}: {key + ': ' if key else ''}{text}" for line, key, text in lines)
            )
        return config
