"""What a case's folder on the cluster holds of jobs that the store does not know, and what becomes of them.

A store that was lost, or restored from an older backup, plans a job that is there already. What its folder
says is believed where it agrees with the case and with itself; else it is refused, and nothing is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.models import Case, SubmitState, job_name
from mqi_hpc.core.observation import NotParsed
from mqi_hpc.core.submission import Receipt, parse_receipt
from mqi_hpc.records.chain import Chain, decode_chain
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import CHAIN, MANIFEST, claim, is_job
from mqi_hpc.records.manifest import format_manifest, parse_manifest

_FIX = (
    "Nothing was sent, and nothing there was changed. Find out who changed it; `mqi-hpc resubmit` goes on"
    " with the next job folder, and leaves this one as it is"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRemains:
    """A job's folder as it was found. `fault`: why its files are not those of its MANIFEST, "" if they are.

    `files` are its small texts by name, `receipts` the text of each by stage, `claims` their names.
    `withdrawn`: it bears the mark that nothing of it is to begin.
    """

    name: str
    fault: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    receipts: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRemains:
    """A case's folder as it was found: its jobs, and SHA-256 of its input's MANIFEST, None: there is none."""

    input_digest: str | None
    jobs: tuple[JobRemains, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A job to take into the store. `state`: STANDING, AMBIGUOUS (to be completed), or REFUSED (given up).

    `newest`: no later job of the case is there.
    """

    chain: Chain
    state: SubmitState
    receipts: Mapping[str, Receipt]
    files: Mapping[str, bytes]
    newest: bool

    @property
    def name(self) -> str:
        """The job's name."""
        return self.chain.job

    @property
    def first(self) -> bool:
        """Whether it is the case's first job."""
        return self.name == job_name(1)


def adoption(case: Case, first: str, remains: CaseRemains) -> tuple[Adopted, ...]:
    """Return the jobs to adopt, oldest first: `first`, which the store could not send, and all later ones.

    Raises ProcessingError, saying why, where one of them cannot be believed.
    """
    _check_input(case, remains)
    found = sorted((one for one in remains.jobs if _number(one.name) >= _number(first)), key=_order)
    wanted = [job_name(_number(first) + n) for n in range(len(found))]
    if not found or [one.name for one in found] != wanted:
        named = ", ".join(one.name for one in found) or "no job"
        raise _refused(case, first, f"{named} is there, {first} is not, or one between them is missing")
    last = found[-1]
    return tuple(_adopted(case, one, newest=one is last) for one in found)


def _check_input(case: Case, remains: CaseRemains) -> None:
    text = format_manifest({file.remote: file.sha256 for file in case.files})
    if remains.input_digest != hashlib.sha256(text.encode()).hexdigest():
        what = "is not there" if remains.input_digest is None else "is another than the case's"
        raise _refused(case, "input", f"its {MANIFEST} {what}")


def _adopted(case: Case, one: JobRemains, *, newest: bool) -> Adopted:
    if one.fault:
        raise _refused(case, one.name, one.fault)
    chain = _chain(case, one)
    if wrong := "; ".join(_misfits(case, one.name, chain)):
        raise _refused(case, one.name, f"its {CHAIN} is not of this case: {wrong}")
    receipts = _receipts(chain, one.receipts)
    whole = set(receipts) == set(chain.stages)
    head = chain.submissions[0]
    # Who has claimed its work was released: the chain stands. Else only the queue can tell.
    begun = any(claim(head.stage, index) in one.claims for index in head.indices)
    # A later job is planned only where the one before stands, or is given up: one that is whole may wait in
    # the queue still, beside those that came after it.
    if whole and (begun or not newest):
        state = SubmitState.STANDING
    else:
        state = SubmitState.AMBIGUOUS if newest and not one.withdrawn else SubmitState.REFUSED
    return Adopted(chain=chain, state=state, receipts=receipts, files=one.files, newest=newest)


def _chain(case: Case, one: JobRemains) -> Chain:
    """Return a job's chain.json, which must be the one that its MANIFEST lists."""
    try:
        listed = parse_manifest(one.files[MANIFEST].decode())
        for name, content in one.files.items():
            if name != MANIFEST and listed.get(name) != hashlib.sha256(content).hexdigest():
                raise _refused(case, one.name, f"{name} is not what {MANIFEST} says")
        return decode_chain(one.files[CHAIN].decode())
    except KeyError as error:
        raise _refused(case, one.name, f"{error.args[0]} is not there") from error
    except (FormatError, UnicodeError) as error:
        raise _refused(case, one.name, str(error)) from error


def _misfits(case: Case, name: str, chain: Chain) -> Iterator[str]:
    pairs: Sequence[tuple[str, object, object]] = (
        ("instance", chain.instance, case.instance),
        ("case key", chain.key, case.case_id),
        ("job", chain.job, name),
        ("plan", chain.plan_uid, case.plan_uid),
        (
            "beams (index, number, input digest)",
            [(beam.index, beam.number, beam.input_digest) for beam in chain.beams],
            [(beam.index, beam.number, beam.input_digest) for beam in case.beams],
        ),
    )
    for what, there, here in pairs:
        if there != here:
            yield f"{what} {there!r:.200}, here {here!r:.200}"
    taken = {beam.source_job for beam in chain.beams} | {chain.interpreted.job}
    later = sorted(job for job in taken if job not in (None, name) and _number(job) > _number(name))
    if later:
        yield f"it takes from {', '.join(later)}, which is later"


def _receipts(chain: Chain, texts: Mapping[str, str]) -> dict[str, Receipt]:
    """Return the receipts that are whole and its own; what another says is left to the next look."""
    found = {}
    for submission in chain.submissions:
        try:
            receipt = parse_receipt(texts.get(submission.stage, ""))
        except NotParsed:
            continue
        if receipt.name == submission.name:
            found[submission.stage] = receipt
    return found


def _refused(case: Case, what: str, why: str) -> ProcessingError:
    return ProcessingError(
        f"{what} of this case is on the cluster already, and cannot be gone on from: {why}",
        where=f"{case.case_id}/{what}",
        fix=_FIX,
    )


def _number(job: str) -> int:
    return int(job[1:]) if is_job(job) else 0


def _order(one: JobRemains) -> int:
    return _number(one.name)
