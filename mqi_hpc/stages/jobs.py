"""What stands in a job's folder: chain, receipts, claims, and whether a stage's record can be believed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from mqi_hpc.records import layout
from mqi_hpc.records.chain import Chain, decode_chain
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.result import Expected, Record, decode_record, faults
from mqi_hpc.stages.publish import read_whole

_RECEIPT = re.compile(r"(\S+) ([1-9][0-9]{0,17}) ([0-9]+)\n\Z")
_CLAIM = re.compile(r"([1-9][0-9]{0,17}) ([1-9][0-9]{0,17}) ([0-9]{1,9}) (\S+) ([0-9]+) ([0-9]+\.[0-9]+)\n\Z")


@dataclass(frozen=True)
class Receipt:
    """Which Slurm job is a stage's submission: its name and the id sbatch gave."""

    name: str
    slurm_id: int


@dataclass(frozen=True)
class Claim:
    """Who works on a task: submission's id, own raw id, restart count, host, process, epoch seconds."""

    array_id: int
    slurm_id: int
    restart: int
    host: str
    process: int
    time: float

    @property
    def folder(self) -> str:
        """The name of the folder for this claim's output."""
        return f"{self.slurm_id}-{self.restart}"

    def encode(self) -> bytes:
        """Return the claim's one line: `id raw restart host pid time`."""
        host = re.sub(r"\s", "_", self.host) or "?"
        return (
            f"{self.array_id} {self.slurm_id} {self.restart} {host} {self.process} {self.time:.6f}\n"
        ).encode()


class NotStanding(Exception):  # noqa: N818 - a finding, not an error
    """There is no record that can be believed; the message says why."""


@dataclass(frozen=True)
class Standing:
    """A valid record: what it says, SHA-256 of its text, and the folder its files are below."""

    record: Record
    digest: str
    folder: Path


class JobFolder:
    """One job's folder <workspace>/<key>/jNN."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def at(self, name: str) -> Path:
        """Return the absolute path of a name within the folder."""
        return self.path / name

    @property
    def input(self) -> Path:
        """The case's input folder."""
        return self.path.parent / "input"

    def sibling(self, job: str) -> JobFolder:
        """Return another job's folder of the same case."""
        return JobFolder(self.path.parent / job)

    def names(self) -> List[str]:
        """Return what is in the folder; listing it makes NFS look again. Empty where it is gone."""
        try:
            return [path.name for path in self.path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def chain(self) -> Optional[Chain]:
        """Return the job's chain, None where there is none; raises FormatError where it is another job's."""
        content = read_whole(self.at(layout.CHAIN))
        if content is None:
            return None
        chain = decode_chain(_text(content, layout.CHAIN))
        key, job = self.path.parent.name, self.path.name
        if (chain.key, chain.job) != (key, job):
            raise FormatError(f"chain.json is that of {chain.key}/{chain.job}, the folder is {key}/{job}")
        return chain

    def receipt(self, stage: str) -> Optional[Receipt]:
        """Return a stage's receipt, None where there is none or it is empty; FormatError where it is none."""
        name = layout.receipt(stage)
        content = read_whole(self.at(name))
        if not content:
            return None
        match = _RECEIPT.match(_text(content, name))
        if match is None:
            raise FormatError(f"{name} is not of the form `name id cluster-time`")
        return Receipt(name=match[1], slurm_id=int(match[2]))

    def claim(self, stage: str, index: int) -> Optional[Claim]:
        """Return who holds a task's claim, None where nobody does; FormatError where it is no claim."""
        name = layout.claim(stage, index)
        content = read_whole(self.at(name))
        if content is None:
            return None
        match = _CLAIM.match(_text(content, name))
        if match is None:
            raise FormatError(f"{name} is not of the form `id raw restart host pid time`")
        return Claim(
            array_id=int(match[1]),
            slurm_id=int(match[2]),
            restart=int(match[3]),
            host=match[4],
            process=int(match[5]),
            time=float(match[6]),
        )

    def standing(self, chain: Chain, stage: str, index: int) -> Standing:
        """Return the valid record of a task of this job; raises NotStanding where there is none.

        `chain` is this job's own. Hashes of the files are not looked at.
        """
        try:
            return self._standing(chain, stage, index)
        except FormatError as error:
            raise NotStanding(f"{chain.job}: {error}") from error

    def _standing(self, chain: Chain, stage: str, index: int) -> Standing:
        if stage not in chain.stages:
            raise NotStanding(f"{chain.job}: it has no stage {stage}, only {', '.join(chain.stages)}")
        if stage == "beams" and index not in chain.computed:
            raise NotStanding(f"{chain.job}: {_task(chain, stage, index)} is not computed in this job")
        receipt, claim = self.receipt(stage), self.claim(stage, index)
        if receipt is None or receipt.name != chain.submission(stage).name:
            raise NotStanding(f"{chain.job}: no receipt of {stage}")
        if claim is None:
            raise NotStanding(f"{chain.job}: {_task(chain, stage, index)} has not begun")
        number = chain.beam(index).number if stage == "beams" else 0
        folder = self.at(layout.output_folder(stage, number))
        content = read_whole(folder / layout.RECORD)
        if content is None:
            raise NotStanding(f"{chain.job}: {_task(chain, stage, index)} has left no record")
        record = decode_record(_text(content, layout.RECORD))
        expected = Expected(
            chain=chain, stage=stage, index=index, array_id=receipt.slurm_id, restart=claim.restart
        )
        found = faults(record, expected, _sizes(folder, record))
        if (claim.array_id, claim.slurm_id) != (record.run.array_id, record.run.slurm_id):
            found.append(f"it is by Slurm job {record.run.slurm_id}, the claim is held by {claim.slurm_id}")
        if found:
            raise NotStanding(
                f"{chain.job}: the record of {_task(chain, stage, index)} is not valid: {'; '.join(found)}"
            )
        return Standing(record=record, digest=hashlib.sha256(content).hexdigest(), folder=folder)


def _task(chain: Chain, stage: str, index: int) -> str:
    return f"beam {chain.beam(index).number}" if stage == "beams" else stage


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is no text: {error}") from error


def _sizes(folder: Path, record: Record) -> Dict[str, int]:
    """Return bytes by path of the regular files that a record lists and that are there.

    Asked for by name: a listing may be older than the file, on NFS.
    """
    sizes = {}
    for entry in record.files:
        path = folder / entry.path
        if path.is_file() and not path.is_symlink():
            sizes[entry.path] = path.stat().st_size
    return sizes
