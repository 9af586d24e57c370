"""What befalls the cluster at a time: its daemons, nodes, admins, disks and network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mqi_hpc.core.errors import ConnectionError
from tests.chaos.faults import Fault
from tests.chaos.port import HurtCluster
from tests.chaos.slurm import ROOT, case_of
from tests.chaos.store import QuickStore, Snapshot
from tests.support.simulation.filesystem import Stored
from tests.support.simulation.jobs import Element, SlurmError, SlurmJob

_LONGEST_HOLD = 600.0


class Befall:
    """Plans what a schedule lets befall a cluster; each thing heals after a while."""

    def __init__(self, cluster: HurtCluster, store: QuickStore) -> None:
        self._cluster = cluster
        self._store = store
        self._backups: dict[Fault, Snapshot] = {}
        self._clock = cluster.clock
        self._slurm = cluster.hurt_slurm
        self._ledger = cluster.ledger
        self._depth: dict[str, int] = {}
        self.others: Callable[[], None] = lambda: None

    def plan(self, fault: Fault) -> None:
        """Let it happen when its time has come."""
        action = getattr(self, f"_{fault.kind.replace('-', '_')}")
        self._clock.later(float(fault.at), partial(self._happen, fault, action))
        if fault.kind == "store-older":
            self._clock.later(float(max(0, fault.at - fault.amount)), partial(self._back_up, fault))

    def _happen(self, fault: Fault, action: Callable[[Fault], bool]) -> None:
        if action(fault):
            self._cluster.struck(fault)

    def _for(self, what: str, seconds: float, set_to: Callable[[bool], object]) -> bool:
        """Let something be so for a while; where it is so already, it is so for longer."""
        self._depth[what] = self._depth.get(what, 0) + 1
        if self._depth[what] == 1:
            set_to(True)

        def heal() -> None:
            self._depth[what] -= 1
            if not self._depth[what]:
                set_to(False)

        self._clock.later(seconds, heal)
        return True

    def _ctld_down(self, fault: Fault) -> bool:
        return self._for("ctld", fault.amount, self._set_ctld)

    def _ctld_lost(self, fault: Fault) -> bool:
        if not self._slurm.up:
            return False
        self._slurm.crash(1.0 + fault.amount % 7)
        seconds = 3.0 + fault.amount % 50
        # Its ids are handed out again, to whoever comes first.
        self._clock.later(seconds, self.others)
        return self._for("ctld", seconds, self._set_ctld)

    def _set_ctld(self, down: bool) -> None:
        if down:
            self._slurm.stop()
        else:
            self._slurm.start()

    def _dbd_down(self, fault: Fault) -> bool:
        if not self._slurm.site.accounting:
            return False
        return self._for("dbd", fault.amount, self._set_dbd)

    def _set_dbd(self, down: bool) -> None:
        if down:
            self._slurm.accounting.up = False
        else:
            self._slurm.accounting.start()

    def _node_down(self, fault: Fault) -> bool:
        return self._node(fault, silently=False)

    def _node_silent(self, fault: Fault) -> bool:
        return self._node(fault, silently=True)

    def _node(self, fault: Fault, *, silently: bool) -> bool:
        if not self._slurm.up:
            return False
        running = self._slurm.ours(running=True)
        name = running[fault.at % len(running)][1].node if running else "g1"
        if not self._slurm.nodes[name].up:
            return False
        for job, element in running:
            if element.node == name:
                self._ledger.hurt(str(case_of(job)), f"node {name} went down")
        self._slurm.node_down(name, silently=silently)
        self._clock.later(fault.amount, partial(self._slurm.node_up, name))
        return bool(running)

    def _target(self, fault: Fault, *, running: bool) -> tuple[SlurmJob, Element] | None:
        found = self._slurm.ours(running=running) if self._slurm.up else []
        if not found:
            return None
        target = found[fault.at % len(found)]
        self._ledger.hurt(str(case_of(target[0])), fault.kind)
        return target

    def _admin_cancel(self, fault: Fault) -> bool:
        target = self._target(fault, running=False)
        if target is None:
            return False
        try:
            self._slurm.scancel(target[0].request.name, target[0].id, ROOT)
        except SlurmError:
            return False
        return True

    def _admin_hold(self, fault: Fault) -> bool:
        waiting = [job for job, one in self._slurm.ours() if one.word == "PENDING" and not job.held]
        if not waiting or not self._slurm.up:
            return False
        job = waiting[fault.at % len(waiting)]
        self._slurm.hold_by_admin(job)
        self._clock.later(min(fault.amount, _LONGEST_HOLD), partial(self._slurm.let_go, job))
        return True

    def _requeue(self, fault: Fault) -> bool:
        target = self._target(fault, running=True)
        if target is not None:
            self._slurm.requeue(*target)
        return target is not None

    def _preempt(self, fault: Fault) -> bool:
        target = self._target(fault, running=True)
        if target is not None:
            self._slurm.preempt(*target)
        return target is not None

    def _preempt_all(self, fault: Fault) -> bool:
        """For a while nothing of ours runs long."""
        for seconds in range(0, fault.amount, 8):
            self._clock.later(float(seconds), partial(self._preempt, fault))
        return True

    def _outage(self, fault: Fault) -> bool:
        return self._for("link", fault.amount, lambda down: setattr(self._cluster.link, "down", down))

    def _key_refused(self, fault: Fault) -> bool:
        return self._for("key", fault.amount, lambda on: setattr(self._cluster.link, "refused", on))

    def _back_up(self, fault: Fault) -> None:
        self._backups[fault] = self._store.snapshot()

    def _store_older(self, fault: Fault) -> bool:
        """The store's disk dies; the daemon starts on a backup, or an empty store, with the same secret."""
        self._cluster.kill(with_children=bool(fault.at % 2))
        self._cluster.forget()
        self._store.put_back(self._backups.pop(fault))
        return True

    def _disk_full(self, fault: Fault) -> bool:
        files = self._cluster.files
        return self._for("disk", fault.amount, lambda on: setattr(files, "free_bytes", 0 if on else 10**15))

    def _files_away(self, fault: Fault) -> bool:
        return self._for("files", fault.amount, lambda on: setattr(self._cluster.files, "away", on))

    def _bits_flipped(self, _: Fault) -> bool:
        self._cluster.transfers.flip = True
        return True

    def _dose_damaged(self, fault: Fault) -> bool:
        """A dose file is cut after its record was written, or is another of the same size."""
        files = self._cluster.hurt_files
        try:
            doses = [path for path in sorted(files.versions) if path.endswith(".raw") and files.exists(path)]
        except ConnectionError:
            return False
        if not doses:
            return False
        path = doses[fault.at % len(doses)]
        content = files.read(path) or b"?"
        spoilt = content[:-1] if fault.amount < 100 else bytes([content[0] ^ 1]) + content[1:]
        files.write(path, Stored.of(spoilt))
        self._ledger.hurt(path.split("/")[2], "its dose was damaged")
        return True
