"""Our own budget of GPU slots over all live arrays, and disk space. Which device a task gets is Slurm's."""

from __future__ import annotations

from collections.abc import Callable

from mqi_hpc.core.errors import ResourceError
from mqi_hpc.core.interfaces import IStore, IUnit

_BY_HAND = "by-hand"


class ResourceService:
    """Counts slots (IResourceService). `gpu_count` None: no budget is kept."""

    def __init__(
        self, store: IStore, *, gpu_count: int | None, min_disk_space_gb: float, free_bytes: Callable[[], int]
    ) -> None:
        self._store = store
        self._gpu_count = gpu_count
        self._min_free = min_disk_space_gb * 1e9
        self._free_bytes = free_bytes

    def throttle(self, beams: int) -> int | None:
        """Return how many of `beams` tasks may run at once, None where no budget is set."""
        return None if self._gpu_count is None else min(beams, self._gpu_count)

    def hold(self, unit: IUnit, job_id: str, count: int) -> bool:
        """Within a transaction: take `count` slots for a job, or none and False where fewer are free.

        A job holds once: asking again replaces what it held.
        """
        if self._gpu_count is None:
            return True
        holdings = unit.resources.holdings()
        others = sum(n for job, n in holdings.items() if job != job_id)
        # Jobs found on the cluster took theirs, free or not: none of them waits for another's.
        if others + count > self._gpu_count and count > holdings.get(job_id, 0):
            return False
        unit.resources.hold(job_id, count)
        return True

    def claim(self, unit: IUnit, job_id: str, beams: int) -> None:
        """Within a transaction: note the slots of a job whose array of `beams` tasks Slurm has already."""
        if self._gpu_count is not None:
            unit.resources.hold(job_id, min(beams, self._gpu_count))

    def shrink(self, unit: IUnit, job_id: str, most: int) -> None:
        """Within a transaction: give back what a job holds beyond `most` slots: its tasks end one by one."""
        if self._gpu_count is not None and unit.resources.holdings().get(job_id, 0) > most:
            unit.resources.hold(job_id, most)

    def release(self, unit: IUnit, job_id: str) -> None:
        """Within a transaction: give a job's slots back."""
        unit.resources.hold(job_id, 0)

    def allocate_gpus(self, count: int) -> list[int]:
        """Take `count` free slots (numbers of our budget, not devices); [] where fewer are free."""
        with self._store.transaction() as unit:
            taken = sum(unit.resources.holdings().values())
            if count < 0 or taken + count > (self._gpu_count or 0):
                return []
            unit.resources.hold(_BY_HAND, unit.resources.holdings().get(_BY_HAND, 0) + count)
        return list(range(taken, taken + count))

    def release_gpus(self, gpu_ids: list[int]) -> None:
        """Give slots taken by allocate_gpus back."""
        with self._store.transaction() as unit:
            held = unit.resources.holdings().get(_BY_HAND, 0)
            unit.resources.hold(_BY_HAND, max(0, held - len(gpu_ids)))

    def check_disk_space(self) -> bool:
        """Whether the results folder's disk has `min_disk_space_gb` left."""
        return self._free_bytes() >= self._min_free

    def require_disk_space(self) -> None:
        """Raise ResourceError where check_disk_space says no."""
        free = self._free_bytes()
        if free < self._min_free:
            raise ResourceError(
                f"{free / 1e9:.1f} GB are free where results go, resources.min_disk_space_gb asks for "
                f"{self._min_free / 1e9:.1f}: make room, or lower the setting"
            )
