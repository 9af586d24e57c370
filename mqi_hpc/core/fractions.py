"""From owned deliveries to fractions: which belong together, which are complete, which are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from mqi_hpc.core.intake import Delivery, Fault, Fraction, IntakeResult, Plan, Rejected, Waiting
from mqi_hpc.core.ownership import Owned, is_setup, owner

_TOO_OLD = timedelta(hours=24)
_STAMP_DIGITS = 16


@dataclass(slots=True)
class _Open:
    """A fraction being put together."""

    plan: Plan
    pieces: dict[int, list[Delivery]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    last: datetime | None = None
    names: list[str] = field(default_factory=list)

    def whole(self, number: int) -> bool:
        beam, pieces = self.plan.beam(number), self.pieces.get(number)
        if beam is None or not pieces:
            return False
        return pieces[-1].stop_layer == len(beam.energies)

    @property
    def wanted(self) -> list[frozenset[int]]:
        treatment = frozenset(beam.number for beam in self.plan.beams)
        groups = [frozenset(group) & treatment for group in self.plan.groups]
        return [group for group in groups if group] or [treatment]

    @property
    def complete(self) -> bool:
        return any(all(map(self.whole, group)) for group in self.wanted) and not any(
            not self.whole(number) for number in self.pieces
        )

    @property
    def missing(self) -> list[int]:
        """Beams that are wanted and not whole, of the group that lacks least."""
        lacks = [[n for n in sorted(group) if not self.whole(n)] for group in self.wanted]
        part = [number for number in sorted(self.pieces) if not self.whole(number)]
        return sorted({*min(lacks, key=len), *part})


def decide(
    plans: Sequence[Plan],
    deliveries: Sequence[Delivery],
    *,
    gap: timedelta,
    now: datetime,
    chosen: Sequence[str] | None = None,
) -> IntakeResult:
    """Return what plans and deliveries make. `now` is local time, like the deliveries' own.

    `chosen` names deliveries (folder, or its last part) that are one fraction by a person's word.
    """
    setup = [d.folder for d in deliveries if is_setup(d, plans)]
    rest = [d for d in deliveries if d.folder not in setup]
    if chosen is not None:
        picked = [d for d in rest if {d.folder, d.folder.rsplit("/", 1)[-1]} & set(chosen)]
        named = {name for d in picked for name in (d.folder, d.folder.rsplit("/", 1)[-1])}
        if unknown := [name for name in chosen if name not in named]:
            known = ", ".join(d.folder for d in rest)
            reason = f"no delivery is named {', '.join(unknown)}; there are {known or 'none'}"
            return IntakeResult(rejected=(Rejected(reason),))
        rest = picked
    owned = [owner(delivery, plans) for delivery in rest]
    orphans = tuple(fault for one in owned if one.plan is None for fault in one.faults)
    rejected = [Rejected("deliveries that no single plan owns", orphans)] if orphans else []
    fractions: list[Fraction] = []
    waiting: list[Waiting] = []
    for plan in plans:
        mine = [one for one in owned if one.plan is plan]
        opened = _group(plan, _sorted(mine), None if chosen is not None else gap)
        if not opened and len(plans) == 1 and not orphans:
            opened = [_Open(plan)]
        for position, one in enumerate(opened):
            last = position == len(opened) - 1
            _settle(one, final=not last or chosen is not None, now=now, into=(fractions, rejected, waiting))
    return IntakeResult(
        fractions=tuple(fractions),
        rejected=tuple(rejected),
        waiting=tuple(waiting),
        ignored_setup=tuple(setup),
    )


def _settle(
    one: _Open,
    *,
    final: bool,
    now: datetime,
    into: tuple[list[Fraction], list[Rejected], list[Waiting]],
) -> None:
    fractions, rejected, waiting = into
    missing = ", ".join(f"beam {number} has no whole delivery" for number in one.missing)
    where = f" (deliveries {', '.join(one.names)})" if one.names else ""
    if one.faults:
        faults = [*one.faults, *([Fault(one.plan.file.path, missing)] if missing else [])]
        rejected.append(Rejected(f"a fraction with faults{where}", tuple(faults), tuple(one.names)))
    elif one.complete:
        fractions.append(
            Fraction(one.plan, tuple((n, tuple(pieces)) for n, pieces in sorted(one.pieces.items())))
        )
    elif final or (one.last is not None and now - one.last > _TOO_OLD):
        lacking = (Fault(one.plan.file.path, missing),)
        rejected.append(Rejected(f"an incomplete fraction{where}", lacking, tuple(one.names)))
    else:
        until = None if one.last is None else one.last + _TOO_OLD
        waiting.append(Waiting(f"{one.plan.file.path}: {missing} yet{where}", until, tuple(one.names)))


def _sorted(mine: Sequence[Owned]) -> list[Owned]:
    if all(one.delivery.started is not None for one in mine):
        return sorted(mine, key=lambda one: (str(one.delivery.started), one.delivery.folder))
    return sorted(mine, key=lambda one: (_name(one.delivery), one.delivery.folder))


def _group(plan: Plan, mine: Sequence[Owned], gap: timedelta | None) -> list[_Open]:
    """Return the fractions of a plan in order of time; `gap` None: all of it is one."""
    opened: list[_Open] = []
    before: datetime | None = None
    for one in mine:
        delivery = one.delivery
        if not opened or (gap is not None and _opens(opened[-1], one, before, gap)):
            opened.append(_Open(plan))
        _add(opened[-1], one)
        before = delivery.started or before
    stamped = [one.delivery for one in mine if _is_stamp(_name(one.delivery))]
    for a, b in pairwise(stamped):
        if a.started != b.started and _name(a) > _name(b):
            said = f"its name says it came after {b.folder}, its PlanInfo before"
            _holder(opened, a).faults.append(Fault(a.folder, said))
    return opened


def _opens(current: _Open, one: Owned, before: datetime | None, gap: timedelta) -> bool:
    started = one.delivery.started
    if started is not None and before is not None and started - before > gap:
        return True
    return current.complete or (not one.faults and current.whole(one.delivery.beam_number))


def _add(current: _Open, one: Owned) -> None:
    delivery = one.delivery
    current.names.append(delivery.folder)
    current.last = delivery.started or current.last
    if one.faults:
        current.faults.extend(one.faults)
        return
    pieces = current.pieces.setdefault(delivery.beam_number, [])
    expected = pieces[-1].stop_layer + 1 if pieces else 1
    if delivery.start_layer != expected:
        path = delivery.info.path if delivery.info else delivery.folder
        what = f"layers {delivery.start_layer} to {delivery.stop_layer} of beam {delivery.beam_number}"
        current.faults.append(
            Fault(path, f"{what} do not go on at layer {expected}, as a piece of it should")
        )
        return
    pieces.append(delivery)


def _holder(opened: Sequence[_Open], delivery: Delivery) -> _Open:
    return next(fraction for fraction in opened if delivery.folder in fraction.names)


def _name(delivery: Delivery) -> str:
    return delivery.folder.rsplit("/", 1)[-1]


def _is_stamp(name: str) -> bool:
    return len(name) == _STAMP_DIGITS and name.isdecimal()
