"""`audit verify`: the store's chain of events against itself, each job's chain.json, and the cluster's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mqi_hpc.controllers.parts import Parts
from mqi_hpc.core.audit import Anchor, Verification, verify
from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.core.interfaces import IStore, IUnit
from mqi_hpc.core.models import Job, SubmitState
from mqi_hpc.infrastructure.config import AppConfig
from mqi_hpc.infrastructure.executors.chains import chain_digests
from mqi_hpc.records.chain import decode_chain
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import CHAIN


@dataclass(frozen=True, slots=True)
class _Kept:
    """A job's chain.json as the store keeps it: its SHA-256, and whether it should lie on the cluster."""

    where: str
    sha256: str
    sent: bool


def verify_audit(config: AppConfig, *, cluster: bool, written_down: Sequence[str] = ()) -> Verification:
    """Return how the audit log stands. Reads alone; works beside a running daemon.

    With `cluster`, each chain.json there is compared with the one in the store. Raises ConfigurationError
    where there is no store or the workspace is another's, ConnectionError where the cluster does not answer.
    """
    if not config.app.state_file.exists():
        raise ConfigurationError(
            "there is no store to verify",
            where=str(config.app.state_file),
            fix="`mqi-hpc init` makes one; where it was lost, that is a fault of its own: see the backup",
        )
    parts = Parts(config)
    try:
        found, kept = _own(parts.store)
        with parts.store.transaction(write=False) as unit:
            anchors = [anchor for anchor in found if isinstance(anchor, Anchor)]
            result = verify(unit.all_events(), unit.audit_head(), anchors, written_down)
        damaged = tuple(said for said in found if isinstance(said, str))
        result = replace(result, faults=(*result.faults, *damaged))
        return _with_cluster(result, parts, kept) if cluster else result
    finally:
        parts.close()


def _own(store: IStore) -> tuple[list[Anchor | str], dict[tuple[str, str], _Kept]]:
    """Return what each job's chain.json in the store says, or why it says nothing; and those files."""
    found: list[Anchor | str] = []
    kept = {}
    with store.transaction(write=False) as unit:
        for case in unit.cases.all():
            for job in unit.jobs.of_case(case.case_id):
                where = f"chain.json of {case.label} {job.name}"
                anchor, digest = _anchor(unit, job, where)
                found.append(anchor)
                sent = job.submit_state not in (SubmitState.PLANNED, SubmitState.WITHDRAWN)
                kept[case.case_id, job.name] = _Kept(where, digest, sent)
    return found, kept


def _anchor(unit: IUnit, job: Job, where: str) -> tuple[Anchor | str, str]:
    text = unit.jobs.files(job.job_id).get(CHAIN)
    if text is None:
        return f"{where}: the store has lost it", ""
    digest = hashlib.sha256(text).hexdigest()
    try:
        chain = decode_chain(text.decode())
    except (FormatError, UnicodeDecodeError) as error:
        return f"{where}: it cannot be read: {error}", digest
    if (chain.key, chain.job) != (job.case_id, job.name):
        return f"{where}: it is of {chain.key} {chain.job}", digest
    return Anchor(case_id=job.case_id, job=job.name, head=chain.audit_head, where=where), digest


def _with_cluster(result: Verification, parts: Parts, kept: dict[tuple[str, str], _Kept]) -> Verification:
    config = parts.config
    try:
        owner, there = chain_digests(
            parts.shell, config.paths.remote_workspace, timeout=config.ssh.command_timeout_seconds
        )
    finally:
        parts.shell.close()
    if owner != parts.store.instance:
        raise ConfigurationError(
            f"the workspace belongs to instance {owner!r}, not to {parts.store.instance!r}",
            where=config.paths.remote_workspace,
            fix="Check paths.remote_workspace",
        )
    faults = [
        f"{one.where} on the cluster is another than the store's: one of them has been changed"
        for name, one in sorted(kept.items())
        if name in there and there[name] != one.sha256
    ]
    faults += [
        f"{key}/{job} is on the cluster, and the store does not know it: `mqi-hpc doctor --orphans`"
        for key, job in sorted(there)
        if (key, job) not in kept
    ]
    gone = sum(one.sent and name not in there for name, one in kept.items())
    compared = sum(name in there for name in kept)
    notes = [f"{compared} chain.json on the cluster compared"]
    notes += [f"{gone} jobs have nothing on the cluster any more (pruned?)"] if gone else []
    return replace(result, faults=(*result.faults, *faults), notes=(*result.notes, *notes))
