"""From verdicts on tasks to the state of a job and of its case; and the exit code a person sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mqi_hpc.core.models import CaseStatus, JobStatus, Task, TaskStatus, TaskType
from mqi_hpc.records.result import ConvertRecord, decode_record


def left_out(tasks: Sequence[Task]) -> Mapping[int, str]:
    """Return the done beams that a done convert made no RT Dose of: why not, by array index.

    `tasks` are those that count (`resubmit.current_tasks`). A dose may have been damaged after its record, or
    its record may have come when convert had looked.
    """
    done = [t.index for t in tasks if t.type is TaskType.BEAM_CALC and t.status is TaskStatus.COMPLETED]
    convert = next((task for task in tasks if task.type is TaskType.CONVERT), None)
    if convert is None or convert.status is not TaskStatus.COMPLETED or convert.record is None:
        return {}
    record = decode_record(convert.record)
    missing = record.missing if isinstance(record, ConvertRecord) else {}
    return {index: missing[str(index)] for index in done if str(index) in missing}


def case_status(tasks: Sequence[Task]) -> CaseStatus:
    """Return the status of a case with `tasks`, those that count (`resubmit.current_tasks`).

    Nothing begun: queued. Anything live or to be retried: processing. All beams done (or accepted) and
    delivered: completed. Some done, or all and one of them not converted: partial. All cancelled: cancelled.
    Else failed. A suspect or lost task has ended; it is not done.
    """
    if any(task.retry is not None for task in tasks):
        return CaseStatus.PROCESSING
    return _status(tasks)


def _status(tasks: Sequence[Task]) -> CaseStatus:
    if all(task.status is TaskStatus.PENDING for task in tasks):
        return CaseStatus.QUEUED
    if not all(task.status.terminal for task in tasks):
        return CaseStatus.PROCESSING
    beams = [task.status for task in tasks if task.type is TaskType.BEAM_CALC]
    done = [status for status in beams if status is TaskStatus.COMPLETED]
    rest = [task.status for task in tasks if task.type is not TaskType.BEAM_CALC]
    if done:
        delivered = all(status is TaskStatus.COMPLETED for status in rest)
        whole = delivered and len(done) == len(beams) and not left_out(tasks)
        return CaseStatus.COMPLETED if whole else CaseStatus.PARTIAL
    if beams and all(status is TaskStatus.CANCELLED for status in beams):
        return CaseStatus.CANCELLED
    return CaseStatus.FAILED


def job_status(tasks: Sequence[Task]) -> JobStatus:
    """Return the status of a job with `tasks`, in the words of jobs; one of convert alone has no beams."""
    ended = [task.status for task in tasks if task.status.terminal]
    if ended and len(ended) == len(tasks) and all(task.type is not TaskType.BEAM_CALC for task in tasks):
        good = all(status is TaskStatus.COMPLETED for status in ended)
        called_off = TaskStatus.CANCELLED in ended and TaskStatus.FAILED not in ended
        return JobStatus.COMPLETED if good else JobStatus.CANCELLED if called_off else JobStatus.FAILED
    return {
        CaseStatus.QUEUED: JobStatus.PENDING,
        CaseStatus.PROCESSING: JobStatus.RUNNING,
        CaseStatus.COMPLETED: JobStatus.COMPLETED,
        CaseStatus.PARTIAL: JobStatus.PARTIAL,
        CaseStatus.CANCELLED: JobStatus.CANCELLED,
        CaseStatus.FAILED: JobStatus.FAILED,
    }[_status(tasks)]


def exit_code(status: CaseStatus) -> int:
    """Return the command's exit code for a case that has come to `status`: 0 fine, 3 partial, 1 not."""
    if status is CaseStatus.COMPLETED:
        return 0
    return 3 if status is CaseStatus.PARTIAL else 1
