"""Cases, jobs and tasks to JSON and back; what does not fit is refused."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mqi_hpc.core.errors import StateError
from mqi_hpc.core.models import Case, Job, SeenFolder, Task

Model = TypeVar("Model", Case, Job, Task)

_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Case, Job, Task, SeenFolder)}


def encode(value: Case | Job | Task | SeenFolder) -> str:
    """Return a value as JSON; raises StateError where it would not come back as it is."""
    kind = type(value)
    try:
        text = _ADAPTERS[kind].dump_json(value).decode()
        whole = _ADAPTERS[kind].validate_json(text, strict=True) == value
    except ValueError as error:
        raise StateError(f"a {kind.__name__} cannot be kept: {error}") from error
    if not whole:
        raise StateError(f"a {kind.__name__} cannot be kept: it holds what JSON has no word for")
    return text


def decode(kind: type[Model], text: str) -> Model:
    """Return the value in `text`; raises StateError where it is none of its kind."""
    try:
        value: Model = _ADAPTERS[kind].validate_json(text, strict=True)
    except ValidationError as error:
        # What was found instead is left out: it may tell of a patient.
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StateError(
            f"a stored {kind.__name__} cannot be read: {place}: {first['msg']}",
            fix="Keep the store for whoever looks into it, and bring it back from a backup",
        ) from error
    return value
