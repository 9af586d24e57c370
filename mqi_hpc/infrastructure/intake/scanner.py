"""Finds case folders below the scan root, and reads those whose copy has ended (the Scan effect)."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath

import structlog

from mqi_hpc.core.effects import Completion, Scan
from mqi_hpc.core.errors import RejectedCase
from mqi_hpc.core.intake import FolderRead, IntakeResult, ScanReport
from mqi_hpc.core.interfaces import ICaseReader, IClock
from mqi_hpc.core.models import SeenFolder
from mqi_hpc.core.readiness import SETTLE_SECONDS, Readiness, SeenFile, fingerprint, judge
from mqi_hpc.infrastructure.intake.folder import IGNORED, PassingFault, PassingRejection, passes, shown
from mqi_hpc.infrastructure.intake.looks import Unseen, children, look
from mqi_hpc.infrastructure.intake.stirring import Stirring

_AGAIN_SECONDS = 60.0
"""Least time until an unchanged folder is read again, whatever clocks and daylight saving say."""
_RESTS = 3
"""How many times as long as a scan took nothing but the interval begins another."""
_CHANGES = "it changes while it is read"


@dataclass(slots=True)
class _Since:
    """What a folder has looked like, and since when (monotonic seconds)."""

    fingerprint: str
    first: float


@dataclass(slots=True)
class _Found:
    """What one scan has come to."""

    known: Mapping[str, SeenFolder]
    folders: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    read: list[FolderRead] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class FolderScanner:
    """Scans when it is told to; remembers since when each folder has been as it is.

    `ready` and `quiet_seconds` are the site's policy (core.readiness), `ignore` patterns of names that do
    not count, `room_level` tells that cases lie in a folder of their room. A scan that has read for
    `busy_seconds` leaves the rest to the next one.
    """

    def __init__(
        self,
        root: Path,
        reader: ICaseReader,
        clock: IClock,
        *,
        ready: str,
        quiet_seconds: float,
        ignore: Sequence[str] = (),
        room_level: bool = False,
        busy_seconds: float = 20.0,
        stirring: Stirring | None = None,
    ) -> None:
        self._root = root
        self._reader = reader
        self._clock = clock
        self._ready = ready
        self._quiet_seconds = quiet_seconds
        self._ignore = (*IGNORED, *ignore)
        self._room_level = room_level
        self._busy_seconds = busy_seconds
        self._stirring = stirring or Stirring(root)
        self._memory: dict[str, _Since] = {}
        self._rests_until = 0.0
        self._closed = False
        self._log = structlog.get_logger("mqi_hpc.intake")

    @property
    def how(self) -> str:
        """How changes are heard of, in words."""
        return self._stirring.how

    def stirred(self) -> bool:
        """Whether another scan is due at once: something has changed, or waits for one more look.

        Not for SETTLE_SECONDS after the last scan, nor for some times as long as that took, so that a long
        copy does not keep the file system busy with us.
        """
        return self._stirring.stirred() and self._clock.monotonic() >= self._rests_until

    def close(self) -> None:
        """End the watching; a scan under way ends at the next folder."""
        self._closed = True
        self._stirring.close()

    def scan(self, effect: Scan) -> Completion:
        """Look at every case folder once; the completion's payload is a ScanReport. Never raises OSError."""
        began = self._clock.monotonic()
        report = self._scan(effect)
        ended = self._clock.monotonic()
        self._rests_until = ended + max(SETTLE_SECONDS, _RESTS * (ended - began))
        return Completion(effect=effect, payload=report)

    def _scan(self, effect: Scan) -> ScanReport:
        self._stirring.clear()
        self._stirring.watch()
        found = _Found(known={seen.folder: seen for seen in effect.known})
        if error := self._list(found):
            return ScanReport(error=error)
        self._links(found)
        self._folders(found)
        there = {shown(str(folder)) for folder in found.folders}
        self._memory = {folder: since for folder, since in self._memory.items() if folder in there}
        return ScanReport(read=tuple(found.read), waiting=tuple(found.waiting), gone=tuple(found.gone))

    def _list(self, found: _Found) -> str:
        """Find the case folders, and known ones that are gone; return why the root tells nothing, or ""."""
        try:
            top = children(self._root, self._ignore)
        except OSError as error:
            return f"the scan folder {str(self._root)!r} cannot be looked at: {error.strerror}"
        if not self._room_level:
            return self._take(self._root, top.folders, top.links, found)
        if not top.folders and any(_below(self._root, seen) for seen in found.known):
            return self._empty(self._root)
        found.links += [self._root / name for name in top.links]
        for name in top.folders:
            room = self._root / name
            try:
                here = children(room, self._ignore)
                why = self._take(room, here.folders, here.links, found)
            except OSError as error:
                why = f"the room folder {str(room)!r} cannot be looked at: {error.strerror}"
            if why:
                found.waiting.append((shown(str(room)), why))
        return ""

    def _take(self, parent: Path, folders: Sequence[str], links: Sequence[str], found: _Found) -> str:
        known = [folder for folder in found.known if str(PurePath(folder).parent) == shown(str(parent))]
        if known and not folders and not links:
            return self._empty(parent)
        there = {shown(str(parent / name)) for name in (*folders, *links)}
        found.folders += [parent / name for name in folders]
        found.links += [parent / name for name in links]
        found.gone += [folder for folder in known if folder not in there]
        return ""

    def _empty(self, folder: Path) -> str:
        return (
            f"{str(folder)!r} is empty, and held cases before: is its share mounted? "
            "If it was emptied on purpose, this ends with the next case in it"
        )

    def _links(self, found: _Found) -> None:
        for link in found.links:
            seen = SeenFolder(folder=shown(str(link)), fingerprint="symbolic link")
            if found.known.get(seen.folder) != seen:
                refused = f"rejected: {seen.folder!r} is a symbolic link; put the folder itself there"
                found.read.append(FolderRead(seen=seen, result=None, refused=refused))

    def _folders(self, found: _Found) -> None:
        ready: list[tuple[Path, list[SeenFile]]] = []
        for folder in found.folders:
            if self._closed:
                return
            try:
                files = look(folder, self._ignore)
            except Unseen as error:
                found.waiting.append((shown(str(folder)), str(error)))
                self._memory.pop(shown(str(folder)), None)
                continue
            standing = judge(
                files,
                policy=self._ready,
                quiet_seconds=self._quiet_seconds,
                unchanged_seconds=self._unchanged(folder, files),
                known=found.known.get(shown(str(folder))),
                now=self._clock.now(),
            )
            if standing.readiness is Readiness.READY:
                ready.append((folder, files))
            elif standing.readiness is Readiness.WAIT:
                found.waiting.append((shown(str(folder)), standing.why))
                if standing.soon:
                    self._stirring.stir()
        self._read_all(ready, found)

    def _unchanged(self, folder: Path, files: Iterable[SeenFile]) -> float | None:
        """Return for how many seconds a folder has been seen to be as it is, None at the first look."""
        name, now = fingerprint(files), self._clock.monotonic()
        since = self._memory.get(shown(str(folder)))
        if since is None or since.fingerprint != name:
            self._memory[shown(str(folder))] = _Since(name, now)
            return None
        return now - since.first

    def _read_all(self, ready: list[tuple[Path, list[SeenFile]]], found: _Found) -> None:
        """Read folders, the one that was complete first before the others, as long as there is time."""
        until = self._clock.monotonic() + self._busy_seconds
        ready.sort(key=lambda one: max((file.mtime_ns for file in one[1]), default=0))
        for position, (folder, files) in enumerate(ready):
            if self._closed or (position and self._clock.monotonic() >= until):
                found.waiting += [(shown(str(rest)), "others are read first") for rest, _ in ready[position:]]
                self._stirring.stir()
                return
            read = self._read(folder, files)
            if isinstance(read, str):
                found.waiting.append((shown(str(folder)), read))
            else:
                found.read.append(read)

    def _read(self, folder: Path, files: list[SeenFile]) -> FolderRead | str:
        """Return what a folder holds, or why that is not known now."""
        name = fingerprint(files)
        result, refused, passing = self._ask(folder)
        try:
            after = fingerprint(look(folder, self._ignore))
        except Unseen as error:
            return str(error)
        if after != name:
            return _CHANGES
        if passing:
            return passing
        seen = SeenFolder(folder=shown(str(folder)), fingerprint=name, again_at=self._again(result))
        return FolderRead(seen=seen, result=result, refused=refused)

    def _ask(self, folder: Path) -> tuple[IntakeResult | None, str, str]:
        """Return what the reader says: a result, or why it refuses, or why it cannot tell now."""
        text = str(folder)
        if shown(text) != text:
            return None, f"rejected: {shown(text)!r}: its name is not UTF-8; rename it", ""
        try:
            result = self._reader.read(text, chosen=None, now=self._clock.now())
        except PassingRejection as error:
            return None, "", str(error)
        except RejectedCase as error:
            return None, str(error), ""
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
            return (None, "", why) if passes(error) else (None, f"rejected: {text!r} {why}", "")
        except Exception as error:  # noqa: BLE001 - told with the folder, and logged
            # One folder must not stop the others. Its name may name a patient: the log gets the place only.
            frames = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("a folder cannot be read", kind=type(error).__name__, traceback=frames)
            return None, f"rejected: {text!r}: {type(error).__name__} (a fault of this program)", ""
        faults = (fault for one in result.rejected for fault in one.faults)
        return result, "", next((str(fault) for fault in faults if isinstance(fault, PassingFault)), "")

    def _again(self, result: IntakeResult | None) -> float | None:
        """Return when an incomplete fraction will be too old (epoch s), None where none will."""
        dates = [waiting.until for waiting in result.waiting if waiting.until] if result else []
        if not dates:
            return None
        return max(_epoch(min(dates)) + 1, self._clock.now() + _AGAIN_SECONDS)


def _epoch(local: datetime) -> float:
    return local.timestamp()


def _below(root: Path, folder: str) -> bool:
    return str(PurePath(folder).parent.parent) == shown(str(root))
