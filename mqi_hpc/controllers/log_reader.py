"""Brings the logs of a case's stages home for reading; changes nothing in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mqi_hpc.core.errors import ProcessingError
from mqi_hpc.core.interfaces import IClock, IEffects
from mqi_hpc.services.report_service import ReportService
from mqi_hpc.services.transfer_service import TransferService


class LogReader:
    """Fetches log tails; where the cluster does not answer, tells what is at home already."""

    def __init__(
        self,
        transfers: TransferService,
        reports: ReportService,
        effects: IEffects,
        clock: IClock,
        *,
        patience: float,
    ) -> None:
        self._transfers = transfers
        self._reports = reports
        self._effects = effects
        self._clock = clock
        self._patience = patience

    def tails(self, case_id: str, beam: int | None) -> tuple[Mapping[str, str], str]:
        """Return local paths by log name, and a note where they are not fresh. `beam` None: all stages."""
        report = self._reports.case(case_id)
        if beam is not None and beam not in [b.number for b in report.beams]:
            numbers = ", ".join(str(b.number) for b in report.beams) or "none yet"
            raise ProcessingError(f"case {report.label} has no beam {beam}; its beams: {numbers}")
        effect = self._transfers.fetch_logs(case_id, beam)
        deadline = self._clock.monotonic() + self._patience
        while (left := deadline - self._clock.monotonic()) > 0:
            for completion in self._effects.completions(left):
                if completion.effect != effect:
                    continue
                if completion.error is None:
                    return json.loads(completion.output)["logs"], ""
                return self._at_home(report.case_id, beam), completion.error
        return self._at_home(report.case_id, beam), "the cluster did not answer in time"

    def _at_home(self, case_id: str, beam: int | None) -> Mapping[str, str]:
        report = self._reports.case(case_id)
        kept = [path for b in report.beams if beam in (None, b.number) for path in b.logs]
        if beam is None:
            kept += [path for task in report.tasks for path in task.logs]
        return {path.rsplit("/", 1)[-1]: path for path in kept}
