"""Kinds of values settings have: each refuses what a shell, Slurm or a file system would misread."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """A section of the configuration: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def _matching(pattern: str, what: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"should be {what}")
        return value

    return AfterValidator(check)


def _local_path(value: Path, info: ValidationInfo) -> Path:
    if not str(value).isprintable():
        raise ValueError("should be a path without control characters")
    base = (info.context or {}).get("base", Path.cwd())
    return Path(os.path.normpath(Path(base) / value.expanduser()))


def _remote_path(value: str) -> str:
    parts = value.split("/")
    if not value.startswith("/") or not any(parts) or ".." in parts or "." in parts:
        raise ValueError("should be an absolute path on the cluster, like /scratch/me/mqi, without . or ..")
    if not value.isprintable() or set(value) & set("%\\"):
        raise ValueError("should hold no %, backslash or control character: Slurm reads them as patterns")
    return "/" + "/".join(part for part in parts if part)


def _str_keys(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


# A local path: ~ is the home folder, a relative one starts at the configuration file's folder.
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(_local_path)]
RemotePath = Annotated[str, AfterValidator(_remote_path)]

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Strings = Annotated[tuple[str, ...], Field(strict=False)]
Command = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Ints3 = Annotated[tuple[Count, Count, Count], Field(strict=False)]
Sizes3 = Annotated[tuple[PositiveNumber, PositiveNumber, PositiveNumber], Field(strict=False)]
Numbers3 = Annotated[tuple[Number, Number, Number], Field(strict=False)]
FactorByDigit = Annotated[dict[str, PositiveNumber], BeforeValidator(_str_keys)]

OneLine = Annotated[str, _matching(r"[^\x00-\x1f\x7f]*", "one line of text")]
SiteName = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", "1 to 32 letters, digits, - or _")]
HostName = Annotated[str, _matching(r"([A-Za-z0-9_:][A-Za-z0-9._:%-]*)?", "a host name or address")]
SlurmName = Annotated[
    str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.,:+@/-]*", "a name as Slurm knows it, without spaces")
]
SlurmTime = Annotated[
    str,
    _matching(
        r"\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d+(:\d{2}){0,2}", 'a Slurm time like "01:00:00" or "2-00"'
    ),
]
SlurmMemory = Annotated[str, _matching(r"\d+[KMGT]?", 'a Slurm memory size like "4G"')]
