"""When new cases are looked for, what is told of it, and what a scan leads to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mqi_hpc.core.effects import Completion, Effect, Failure, Scan
from mqi_hpc.core.errors import StateError
from mqi_hpc.core.intake import ScanReport
from mqi_hpc.core.models import SeenFolder
from mqi_hpc.domain.scans import Scans
from mqi_hpc.services.intake_service import IntakeOutcome
from tests.support.memory_store import MemoryStore
from tests.support.world import Clock

INTERVAL = 60.0


@dataclass
class Site:
    """Scans with everything around them in the test's hand."""

    clock: Clock = field(default_factory=Clock)
    store: MemoryStore = field(default_factory=MemoryStore)
    started: list[Effect] = field(default_factory=list)
    said: list[tuple[str | None, str]] = field(default_factory=list)
    applied: list[ScanReport] = field(default_factory=list)
    outcome: IntakeOutcome = field(default_factory=IntakeOutcome)
    stirred: bool = False

    def __post_init__(self) -> None:
        self.scans = Scans(
            self.store,
            self,
            self,  # type: ignore[arg-type]
            self.clock,
            interval=INTERVAL,
            stirred=lambda: self.stirred,
            tell=lambda case_id, text: self.said.append((case_id, text)),
        )

    def start(self, effect: Effect) -> None:
        self.started.append(effect)

    def apply(self, report: ScanReport) -> IntakeOutcome:
        self.applied.append(report)
        return self.outcome

    def ends(self, report: object = None, **failed: object) -> tuple[str, ...]:
        """The scan that is under way comes back."""
        payload = ScanReport() if report is None and not failed else report
        completion = Completion(effect=self.started[-1], payload=payload, **failed)  # type: ignore[arg-type]
        return self.scans.apply(completion)

    def scan(self, report: object = None, **failed: object) -> tuple[str, ...]:
        self.clock.time += INTERVAL
        self.scans.begin()
        return self.ends(report, **failed)


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_first_is_due_at_once_then_by_the_interval(site: Site) -> None:
    assert site.scans.wait() == 0
    site.scans.begin()
    assert len(site.started) == 1
    site.clock.time += 10
    site.ends()
    assert site.scans.wait() == INTERVAL - 10
    site.scans.begin()
    assert len(site.started) == 1
    site.clock.time += INTERVAL - 10
    assert site.scans.wait() == 0
    site.scans.begin()
    assert len(site.started) == 2


def test_none_begins_while_one_is_under_way(site: Site) -> None:
    site.scans.begin()
    site.stirred = True
    site.clock.time += 10 * INTERVAL
    site.scans.begin()
    assert len(site.started) == 1
    assert site.scans.wait() == INTERVAL
    site.ends()
    assert site.scans.wait() == 0


def test_what_stirs_is_looked_at_at_once(site: Site) -> None:
    site.scan()
    site.scans.begin()
    assert len(site.started) == 1
    site.stirred = True
    site.scans.begin()
    assert len(site.started) == 2


def test_a_scan_knows_the_folders_as_they_were(site: Site) -> None:
    seen = SeenFolder(folder="/data/P1", fingerprint="f", again_at=1.0)
    with site.store.transaction() as unit:
        unit.folders.put(seen)
    site.scans.begin()
    assert site.started == [Scan(known=(seen,))]


def test_what_was_found_is_registered_and_told(site: Site) -> None:
    report = ScanReport(waiting=(("/data/P2", "half copied"),))
    site.outcome = IntakeOutcome(new=("a", "b"), told=(("a", "registered"), (None, "rejected")))
    assert site.scan(report) == ("a", "b")
    assert site.applied == [report]
    assert site.said == [("a", "registered"), (None, "rejected")]
    assert site.scans.waiting == report.waiting


def test_an_outage_is_told_when_it_begins_when_it_changes_and_when_it_ends(site: Site) -> None:
    site.scan()
    begun = site.scans.last
    for error in ("no such folder", "no such folder", "it hangs"):
        assert site.scan(ScanReport(error=error)) == ()
    assert site.scan(error="it hangs", failure=Failure.FOLDER) == ()
    assert [text.rpartition(": ")[2] for _, text in site.said] == ["no such folder", "it hangs"]
    assert site.scans.last == begun
    assert len(site.applied) == 1
    site.scan()
    site.scan()
    assert [text for _, text in site.said[2:]] == ["the folder of cases can be looked at again"]
    assert site.scans.last == site.clock.time
    site.scan(error="it hangs")
    assert "it hangs" in site.said[-1][1]


def test_a_scan_that_failed_is_made_again(site: Site) -> None:
    site.scan(error="it hangs")
    site.clock.time += INTERVAL
    site.scans.begin()
    assert len(site.started) == 2


@pytest.mark.parametrize("payload", [None, "rubbish", 3])
def test_a_scan_that_brings_nothing_is_a_failure(site: Site, payload: object) -> None:
    site.scans.begin()
    assert site.scans.apply(Completion(effect=site.started[-1], payload=payload)) == ()
    assert "brought no report" in site.said[0][1]


def test_the_first_that_never_ends_has_an_age(site: Site) -> None:
    assert site.scans.last is None
    site.clock.time += 5
    site.scans.begin()
    assert site.scans.last == 5


def test_a_store_that_fails_stops_everything(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ScanReport) -> IntakeOutcome:
        raise StateError("the store cannot be written")

    monkeypatch.setattr(Site, "apply", staticmethod(fail))
    with pytest.raises(StateError):
        site.scan()
