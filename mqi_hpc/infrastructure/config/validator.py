"""Values to settings: every fault at once, each with its key and what would be right."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mqi_hpc.infrastructure.config.models import AppConfig

Location = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: the key it is at, and what is wrong and what would be right."""

    where: Location
    message: str


class ConfigValidator:
    """Checks settings without touching network or disk."""

    def validate(self, values: Any, base: Path) -> tuple[AppConfig | None, list[Problem]]:
        """The settings, or None and every problem found; relative paths start at `base`."""
        problems = list(_missing_host(values))
        try:
            config = AppConfig.model_validate(values, context={"base": base})
        except ValidationError as error:
            problems += [_explained(details) for details in error.errors(include_url=False)]
            return None, problems
        problems += _overlapping_folders(config)
        return (None if problems else config), problems


def _missing_host(values: Any) -> Iterator[Problem]:
    if not isinstance(values, dict) or values.get("transport", "ssh") != "ssh":
        return
    ssh = values.get("ssh", {})
    if isinstance(ssh, dict) and ssh.get("host", "") == "":
        yield Problem(
            ("ssh", "host"),
            "is missing: name the login node, or set transport: local on a machine that submits itself",
        )


def _overlapping_folders(config: AppConfig) -> Iterator[Problem]:
    scanned, results = config.paths.local_logdata, config.paths.local_results
    if results.is_relative_to(scanned) or scanned.is_relative_to(results):
        yield Problem(
            ("paths", "local_results"),
            f"{results} and paths.local_logdata {scanned} should not lie within each other: "
            "results would be scanned as cases",
        )


def _explained(details: ErrorDetails) -> Problem:
    where = tuple(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        known = _keys_at(where[:-1])
        close = difflib.get_close_matches(where[-1], known, n=1)
        elsewhere = [".".join(path) for path in _sections_with(where[-1])]
        if close:
            hint = f"did you mean {close[0]}?"
        elif elsewhere:
            hint = f"it belongs at {elsewhere[0]}"
        else:
            hint = f"known here: {', '.join(known)}"
        return Problem(where, f"unknown key; {hint}")
    if details["type"] == "missing":
        return Problem(where, f"is missing: {_description(where)}".rstrip(": "))
    given = details["input"]
    shown = "nothing" if given is None else repr(given)
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if details["type"] == "string_type" and given is not None:
        message += ' (write it in "quotes")'
    if details["type"] in {"model_type", "dict_type", "model_attributes_type"}:
        message = f"should be a section with the keys {', '.join(_keys_at(where)) or 'it names'}"
    if isinstance(given, dict):
        return Problem(where, message)
    about = _description(where)
    return Problem(where, f"{shown} is not right: {message}" + (f" [{about.rstrip('.')}]" if about else ""))


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation holds, if any: itself, in an Optional, or as a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Union, types.UnionType, dict}:
        for part in get_args(annotation):
            if found := _model(part):
                return found
    return None


def _section(where: Location) -> type[BaseModel] | None:
    model: type[BaseModel] | None = AppConfig
    skip = False
    for part in where:
        if skip:  # a name of the site's own, in a mapping of sections
            skip = False
            continue
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
        skip = get_origin(annotation) is dict
        model = _model(annotation)
    return model


def _keys_at(where: Location) -> list[str]:
    model = _section(where)
    return list(model.model_fields) if model else []


def _description(where: Location) -> str:
    model = _section(where[:-1]) if where else None
    found = model.model_fields.get(where[-1]) if model else None
    return (found.description or "") if found else ""


def _sections_with(key: str, model: type[BaseModel] = AppConfig, above: Location = ()) -> Iterator[Location]:
    for name, info in model.model_fields.items():
        if name == key:
            yield (*above, name)
        inner = _model(info.annotation)
        if inner is not None and get_origin(info.annotation) is not dict:
            yield from _sections_with(key, inner, (*above, name))
