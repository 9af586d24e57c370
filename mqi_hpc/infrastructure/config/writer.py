"""Writes a first configuration file: what was chosen, all else as comments with the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config.loader import ConfigLoader
from mqi_hpc.infrastructure.config.models import AppConfig
from mqi_hpc.infrastructure.state.publish import first_to_publish, replacing

Chosen = Mapping[str, Any]
"""Settings by their dotted key, like "ssh.host"."""

_HEADER = """\
# Configuration of mqi-hpc, written by `mqi-hpc init`. `mqi-hpc doctor` checks it.
# A line that begins with # is a setting left at its default. To change it, take the # away: here, and in
# front of its section, where that has one too.
# Times are in seconds unless said otherwise; ~ is the home folder; a relative path starts here.
"""


def config_text(chosen: Chosen) -> str:
    """Return a configuration that sets `chosen`, with every other setting as a comment.

    Raises ValueError for a key that is no setting.
    """
    left = dict(chosen)
    lines = [_HEADER]
    for name, info in AppConfig.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            own = {key: left.pop(f"{name}.{key}") for key in section.model_fields if f"{name}.{key}" in left}
            lines += [*_section(name, info, section, own), ""]
        else:
            given = {name: left.pop(name)} if name in left else {}
            lines += [_line(name, info, given), ""]
    if left:
        raise ValueError(f"no settings: {', '.join(sorted(left))}")
    return "\n".join(lines)


def write_config(path: Path, chosen: Chosen, *, force: bool = False) -> Path | None:
    """Write a configuration (mode 0600) that loads; return where the one before is kept, if any.

    Raises ConfigurationError where a value is not right, where a file is there and `force` is not said, or
    where it cannot be written.
    """
    text = config_text(chosen)
    ConfigLoader().parse(text, path)
    kept = path.with_name(f"{path.name}.old") if force and path.exists() else None
    try:
        if kept is not None:
            with replacing(path, keep=kept) as fresh:
                fresh.write_text(text, encoding="utf-8")
        else:
            with first_to_publish(path) as fresh:
                fresh.write_text(text, encoding="utf-8")
            # Another may have been faster; what was there before stands.
            if path.read_text(encoding="utf-8") != text:
                raise _taken(path)
    except UnicodeEncodeError as error:
        raise ConfigurationError("a value is no text that UTF-8 can hold", where=str(path)) from error
    except OSError as error:
        raise ConfigurationError(
            f"the configuration cannot be written: {error.strerror}",
            where=str(path),
            fix="Name another file with --config",
        ) from error
    return kept


def _taken(path: Path) -> ConfigurationError:
    return ConfigurationError(
        "there is a configuration already; it was left as it is",
        where=str(path),
        fix="Change it with an editor; --force writes a new one and keeps the old one beside it",
    )


def _section(name: str, info: FieldInfo, model: type[BaseModel], chosen: Chosen) -> list[str]:
    mark = "" if chosen else "# "
    lines = [f"# {info.description}", f"{mark}{name}:"]
    return [*lines, *(f"  {_line(key, field, chosen)}" for key, field in model.model_fields.items())]


def _line(key: str, info: FieldInfo, chosen: Chosen) -> str:
    about = f"  # {info.description}" if info.description else ""
    if key in chosen:
        return f"{key}: {_value(chosen[key])}{about}"
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return f"# {key}:{about}"
    return f"# {key}: {_value(default)}{about}"


def _value(value: Any) -> str:
    """Return a value in YAML's flow form, which JSON is."""
    text = json.dumps(_plain(value), ensure_ascii=False)
    for ending in "\x85\u2028\u2029":
        # Line ends to YAML, and nothing special to JSON.
        text = text.replace(ending, f"\\u{ord(ending):04x}")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
