"""Which plan a delivery belongs to, and what is wrong with it measured against that plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mqi_hpc.core.intake import Delivery, Fault, Plan
from mqi_hpc.records.delivery import same_energy


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A delivery and its plan, None where no single plan owns it. `faults` holds all that is wrong."""

    delivery: Delivery
    plan: Plan | None
    faults: tuple[Fault, ...]


def is_setup(delivery: Delivery, plans: Sequence[Plan]) -> bool:
    """Whether a delivery is of a beam that every plan of its patient which has it calls a set-up beam.

    Another patient's or study's is none: it does not belong here, whatever was delivered.
    """
    number = delivery.beam_number
    mine = [plan for plan in plans if not _strange(delivery, plan)]
    return any(number in plan.setup for plan in mine) and not any(plan.beam(number) for plan in mine)


def owner(delivery: Delivery, plans: Sequence[Plan]) -> Owned:
    """Return a delivery with the one plan that fits, or with the reasons why none or not one does."""
    if delivery.faults:
        # It could not be read whole: with one plan it is that plan's, whatever it was to be.
        return Owned(delivery=delivery, plan=plans[0] if len(plans) == 1 else None, faults=delivery.faults)
    misfits = [_misfits(delivery, plan) for plan in plans]
    fitting = [plan for plan, wrong in zip(plans, misfits, strict=True) if not wrong]
    if len(fitting) == 1:
        return Owned(delivery=delivery, plan=fitting[0], faults=())
    if len(plans) == 1:
        return Owned(delivery=delivery, plan=plans[0], faults=tuple(misfits[0]))
    path = delivery.info.path if delivery.info else delivery.folder
    if fitting:
        names = " and ".join(plan.file.path for plan in fitting)
        fault = Fault(path, f"the plans {names} both fit it: one plan is expected")
        return Owned(delivery=delivery, plan=None, faults=(fault,))
    reasons = [
        replace(fault, message=f"{fault.message} (against {plan.file.path})")
        for plan, wrong in zip(plans, misfits, strict=True)
        for fault in wrong
    ]
    return Owned(delivery=delivery, plan=None, faults=(Fault(path, "no plan fits it"), *reasons))


def _misfits(delivery: Delivery, plan: Plan) -> list[Fault]:
    info = delivery.info.path if delivery.info else delivery.folder
    table = delivery.range.path if delivery.range else delivery.folder
    found = _strange(delivery, plan)
    if delivery.beam_number in plan.setup:
        return [*found, Fault(info, f"beam {delivery.beam_number} is a set-up beam of the plan")]
    beam = plan.beam(delivery.beam_number)
    if beam is None:
        numbers = ", ".join(str(beam.number) for beam in plan.beams)
        said = f"unknown beam number {delivery.beam_number}: the plan's treatment beams are {numbers}"
        return [*found, Fault(info, said)]
    layers = len(beam.energies)
    if delivery.stop_layer > layers:
        said = (
            f"STOP_LAYER_NUMBER is {delivery.stop_layer}, beam {beam.number} of the plan has {layers} layers"
        )
        return [*found, Fault(info, said)]
    for row in delivery.rows:
        if not same_energy(row.energy, beam.energies[row.layer - 1]):
            planned = beam.energies[row.layer - 1]
            found.append(
                Fault(
                    table,
                    f"layer {row.layer} has {row.energy:g} MeV, beam {beam.number} of the plan {planned:g}",
                )
            )
    return found


def _strange(delivery: Delivery, plan: Plan) -> list[Fault]:
    """Return what tells that a delivery is of another patient or study than a plan."""
    info = delivery.info.path if delivery.info else delivery.folder
    found = []
    if delivery.patient_id != plan.patient_id:
        # The ids themselves are not said: messages reach logs and screens.
        found.append(Fault(info, "wrong patient: DICOM_PATIENT_ID is not the plan's PatientID"))
    if delivery.study_uid and delivery.study_uid != plan.study_uid:
        found.append(Fault(info, "wrong study: DICOM_STUDY_INS_UID is not the plan's StudyInstanceUID"))
    return found
