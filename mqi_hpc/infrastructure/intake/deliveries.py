"""Reads delivery folders: PlanInfo, PlanRange and one .ptn a layer; all that is wrong with one, at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mqi_hpc.core.intake import Delivery, Fault, SourceFile
from mqi_hpc.infrastructure.intake.folder import Tree, Unreadable, read_file, read_text
from mqi_hpc.records.delivery import ROW_BYTES, PlanInfo, RangeRow, parse_plan_info, parse_plan_range
from mqi_hpc.records.form import FormatError

_LAYER_AT_END = re.compile(r"_(\d{1,6})\.ptn\Z", re.IGNORECASE)
_INFO = ("planinfo.txt",)
_RANGE = ("planrange.csv", "planrange.txt")
"""In the order of preference."""
_MOST_LOG = 1024 * 1024 * 1024
"""Bytes: a hundred times what the longest layer has."""
_SHOWN = 20
_STAMP = re.compile(r"\d{14}(\d{2})?\Z")


def read_deliveries(tree: Tree, ranges: Collection[str]) -> list[Delivery]:
    """Return every folder that holds a PlanInfo, PlanRange or .ptn.

    `ranges` are the known digits of DOSE1_RANGE.
    """
    found = []
    for folder, names in tree.folders.items():
        low = [name.lower() for name in names]
        if any(name.endswith(".ptn") or name in (*_INFO, *_RANGE) for name in low):
            found.append(_Reader(tree, folder, names, ranges).read())
    return found


@dataclass(slots=True)
class _Reader:
    tree: Tree
    folder: str
    names: Sequence[str]
    ranges: Collection[str]
    faults: list[Fault] = field(default_factory=list)

    def read(self) -> Delivery:
        info_file, info = self._info()
        range_file, rows = self._rows()
        logs = self._logs(rows, info)
        if info is not None and range_file is not None:
            self._compare(info, range_file.path, rows)
        return Delivery(
            folder=self.folder or ".",
            faults=tuple(self.faults),
            info=info_file,
            range=range_file,
            rows=tuple(rows),
            logs=logs,
            patient_id=info.patient_id if info else "",
            study_uid=info.study_uid if info else "",
            beam_number=info.beam_number if info else 0,
            start_layer=info.start_layer if info else 0,
            stop_layer=info.stop_layer if info else 0,
            started=_time(info.irradiated if info else "") or _time(self.folder.rsplit("/", 1)[-1]),
        )

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def _fault(self, name: str, message: str) -> None:
        self.faults.append(Fault(self._path(name) if name else self.folder or ".", message))

    def _named(self, *wanted: str) -> str | None:
        for want in wanted:
            names = [name for name in self.names if name.lower() == want]
            for other in names[1:]:
                self._fault(other, f"differs from {names[0]} in capitals only: which is meant?")
            if names:
                return names[0]
        return None

    def _info(self) -> tuple[SourceFile | None, PlanInfo | None]:
        name = self._named(*_INFO)
        if name is None:
            self._fault("PlanInfo.txt", "is missing: it says which beam was delivered")
            return None, None
        try:
            file, text = read_text(self.tree.root, self._path(name))
            return file, parse_plan_info(text, name)
        except Unreadable as error:
            self.faults.append(error.fault)
        except FormatError as error:
            self._fault(name, str(error).removeprefix(f"{name}: "))
        return None, None

    def _rows(self) -> tuple[SourceFile | None, list[RangeRow]]:
        name = self._named(*_RANGE)
        if name is None:
            self._fault("PlanRange.txt", "is missing: it names the layers and their monitor ranges")
            return None, []
        try:
            file, text = read_text(self.tree.root, self._path(name))
            return file, parse_plan_range(text, name)
        except Unreadable as error:
            self.faults.append(error.fault)
        except FormatError as error:
            self._fault(name, str(error).removeprefix(f"{name}: "))
        return None, []

    def _compare(self, info: PlanInfo, path: str, rows: Sequence[RangeRow]) -> None:
        wanted = range(info.start_layer, info.stop_layer + 1)
        layers = [row.layer for row in rows]
        if missing := sorted(set(wanted) - set(layers)):
            self.faults.append(
                Fault(path, f"has no row for {_layers(missing)}, which PlanInfo says it holds")
            )
        if extra := sorted(set(layers) - set(wanted)):
            said = f"has rows for {_layers(extra)}; PlanInfo says layers {wanted.start} to {info.stop_layer}"
            self.faults.append(Fault(path, said))
        known = ", ".join(sorted(self.ranges))
        for row in rows:
            if row.dose1_range not in self.ranges:
                said = f"layer {row.layer} has DOSE1_RANGE {row.dose1_range!r}; the machine knows {known}"
                self.faults.append(Fault(path, said))

    def _logs(self, rows: Sequence[RangeRow], info: PlanInfo | None) -> tuple[tuple[int, SourceFile], ...]:
        logs: dict[str, str] = {}
        for there in self.names:
            low = there.lower()
            if low.endswith(".ptn") and logs.setdefault(low, there) != there:
                self._fault(there, f"differs from {logs[low]} in capitals only: which is meant?")
        numbered: dict[int | None, list[str]] = {}
        for log in logs.values():
            numbered.setdefault(_layer_at_end(log), []).append(log)
        taken: dict[str, int] = {}
        found = []
        for row in rows:
            name = _log_of(row, logs, numbered.get(row.layer, []))
            if name is None:
                named = f" ({row.file})" if row.file else ""
                self._fault("", f"the .ptn of layer {row.layer} is missing{named}")
            elif name in taken:
                self._fault(name, f"is named for layer {taken[name]} and for layer {row.layer}")
            else:
                taken[name] = row.layer
                found.append((row.layer, name))
        if rows and info is not None:
            for name in sorted(set(logs.values()) - set(taken)):
                self._fault(name, "belongs to no layer of PlanRange")
        files = [(layer, self._log(name)) for layer, name in sorted(found)]
        return tuple((layer, file) for layer, file in files if file is not None)

    def _log(self, name: str) -> SourceFile | None:
        try:
            file, _ = read_file(self.tree.root, self._path(name), most=_MOST_LOG, keep=False)
        except Unreadable as error:
            self.faults.append(error.fault)
            return None
        if file.bytes == 0 or file.bytes % ROW_BYTES:
            said = f"has {file.bytes} bytes, not a multiple of {ROW_BYTES}: it is empty or was cut off"
            self._fault(name, said)
        return file


def _log_of(row: RangeRow, logs: Mapping[str, str], numbered: Sequence[str]) -> str | None:
    """Return the .ptn (`logs`: by name in small letters) that a row names, else the one of its number."""
    named = re.split(r"[/\\]", row.file)[-1].lower()
    for name in (named, f"{named}.ptn"):
        if named and name in logs:
            return logs[name]
    return numbered[0] if len(numbered) == 1 else None


def _layer_at_end(name: str) -> int | None:
    match = _LAYER_AT_END.search(name)
    return int(match[1]) if match else None


def _layers(numbers: Sequence[int]) -> str:
    some = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"layer{'s' if len(numbers) > 1 else ''} {some}{more}"


def _time(stamp: str) -> datetime | None:
    """Return the local time in yyyymmddhhmmss[xx], None where there is none."""
    if not _STAMP.match(stamp):
        return None
    try:
        return datetime.strptime(stamp[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007 - the machine's local time
    except ValueError:
        return None
