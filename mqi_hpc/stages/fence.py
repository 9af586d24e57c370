"""The fence: whether this very process may do a task's work. First thing in every stage, before all else.

A duplicate submission, a ghost that slurmctld brought back, a requeue or a second start under the same id
ends here, with exit code 78 or 79 (or 0, where the work is done) and nothing touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from mqi_hpc.records import layout
from mqi_hpc.records.chain import Chain, ChainBeam
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import EXIT_NOT_NOW, EXIT_NOT_OURS
from mqi_hpc.records.result import InterpretRecord
from mqi_hpc.stages.errors import AlreadyDone, Refused
from mqi_hpc.stages.identity import Identity
from mqi_hpc.stages.jobs import Claim, JobFolder, NotStanding, Receipt, Standing
from mqi_hpc.stages.publish import publish

PATIENCE = 90.0
"""How long (s) to wait for the receipt: longer than NFS hides a new file (acdirmax is 60 s)."""
INTERVAL = 1.0


@dataclass(frozen=True)
class Admission:
    """What the fence found: this task is ours to do. `interpreted` and `beam` stand where they apply."""

    folder: JobFolder
    chain: Chain
    stage: str
    index: int
    identity: Identity
    interpreted: Optional[Standing] = None
    beam: Optional[ChainBeam] = None


def admit(
    folder: JobFolder,
    stage: str,
    identity: Identity,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Admission:
    """Return the admission of this process to a task; raises Refused. Touches nothing.

    `clock` gives seconds that never run backwards, `sleep` waits for some.
    """
    receipt, chain = _wait(folder, stage, clock, sleep)
    _check_identity(receipt, chain, stage, identity)
    index = identity.array_index or 0
    if stage == "interpret":
        return Admission(folder, chain, stage, index, identity)
    interpreted = _interpreted(folder, chain, stage)
    if stage == "convert":
        return Admission(folder, chain, stage, index, identity, interpreted)
    if index not in chain.submission(stage).indices:
        raise Refused(f"array index {index} is none of this job's beams", EXIT_NOT_OURS)
    return Admission(folder, chain, stage, index, identity, interpreted, chain.beam(index))


def take_claim(admission: Admission, claim: Claim) -> None:
    """Take the task's claim for this process; raises AlreadyDone or Refused where another holds it."""
    folder, stage, index = admission.folder, admission.stage, admission.index
    name = layout.claim(stage, index)
    if publish(claim.encode(), folder.at(name)):
        return
    try:
        folder.standing(admission.chain, stage, index)
    except NotStanding as error:
        raise Refused(f"another run holds {name}, and {error}", EXIT_NOT_NOW) from error
    raise AlreadyDone(f"{name} is taken and its valid record stands: nothing left to do")


def _wait(
    folder: JobFolder, stage: str, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[Receipt, Chain]:
    name, deadline = layout.receipt(stage), clock() + PATIENCE
    while True:
        names = folder.names()
        if layout.CHAIN not in names:
            raise Refused("the job's folder or its chain.json is gone", EXIT_NOT_OURS)
        if layout.WITHDRAWN in names:
            raise Refused(f"the job was called off: {layout.WITHDRAWN} is in its folder", EXIT_NOT_OURS)
        fault = f"no {name} within {PATIENCE:.0f} s"
        try:
            receipt = folder.receipt(stage)
            chain = folder.chain()
        except FormatError as error:
            # Not whole yet, or never will be.
            receipt = chain = None
            fault = str(error)
        if receipt is not None and chain is not None:
            return receipt, chain
        if clock() >= deadline:
            raise Refused(fault, EXIT_NOT_OURS)
        sleep(INTERVAL)


def _check_identity(receipt: Receipt, chain: Chain, stage: str, identity: Identity) -> None:
    if stage not in chain.stages:
        listed = ", ".join(chain.stages)
        raise Refused(f"{chain.job} has no stage {stage}: chain.json lists {listed}", EXIT_NOT_OURS)
    wanted = chain.submission(stage).name
    if not wanted == receipt.name == identity.name:
        raise Refused(
            f"this is Slurm job {identity.name!r:.120}, {layout.receipt(stage)} names {receipt.name}, "
            f"chain.json {wanted}",
            EXIT_NOT_OURS,
        )
    if receipt.slurm_id != identity.submission_id:
        raise Refused(
            f"this is Slurm job {identity.submission_id}, {layout.receipt(stage)} names {receipt.slurm_id}",
            EXIT_NOT_OURS,
        )
    if (stage == "beams") is (identity.array_index is None):
        kind = "no array" if identity.array_index is None else "an array"
        raise Refused(f"stage {stage} was started in {kind}", EXIT_NOT_OURS)


def _interpreted(folder: JobFolder, chain: Chain, stage: str) -> Standing:
    """Return interpret's valid record; order is proven by it, not by Slurm's dependency."""
    try:
        return find_interpreted(folder, chain)
    except NotStanding as error:
        lead = "interpret did not finish" if stage == "convert" else "interpret's record does not stand"
        raise Refused(f"{lead}: {error}", EXIT_NOT_NOW) from error


def find_interpreted(folder: JobFolder, chain: Chain) -> Standing:
    """Return the valid interpret record that chain.json names; raises NotStanding where there is none."""
    named = chain.interpreted
    if named.record_digest is None:
        standing = folder.standing(chain, "interpret", 0)
    else:
        standing = standing_of(folder, named.job, "interpret", None)
        if standing.digest != named.record_digest:
            raise NotStanding(f"{named.job}: interpret's record is not the one chain.json names")
    record = standing.record
    assert isinstance(record, InterpretRecord)  # noqa: S101 - its stage was checked; told to the type checker
    for beam in chain.beams:
        if record.input_digests.get(str(beam.number)) != beam.input_digest:
            raise NotStanding(f"{named.job}: interpret had another input for beam {beam.number}")
    return standing


def standing_of(folder: JobFolder, job: str, stage: str, number: Optional[int]) -> Standing:
    """Return a task's valid record in another job of the case, judged by that job's own chain and receipt.

    `number` is the DICOM BeamNumber, for stage "beams" alone. Raises NotStanding.
    """
    other = folder.sibling(job)
    try:
        chain = other.chain()
    except FormatError as error:
        raise NotStanding(f"{job}: {error}") from error
    if chain is None:
        raise NotStanding(f"{job}: it has no chain.json")
    if number is None:
        return other.standing(chain, stage, 0)
    for beam in chain.beams:
        if beam.number == number:
            return other.standing(chain, stage, beam.index)
    raise NotStanding(f"{job}: it has no beam {number}")
