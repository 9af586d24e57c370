"""Pure parsers of what the cluster answers: framed sections, squeue and sacct rows, receipts.

Every section stands between marks that carry a nonce, with its exit code at the end; one that is cut
short, has another exit code or does not parse says nothing (invariant 4). Formats: squeue and sacct
manuals, 21.08 to 26.05. Rows of the user's other jobs are passed over: only our names begin with PREFIX,
and only rows of such names must have the form we know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mqi_hpc.core.slurm_states import TERMINAL, read_word
from mqi_hpc.records.layout import STAGES, WITHDRAWN

MARK = "\x1e"
FIELD = "\x1f"
PREFIX = "mqi-"
SQUEUE_FORMAT = FIELD.join(("%F", "%K", "%T", "%r", "%V", "%N", "%j"))
SACCT_FIELDS = ("JobID", "JobName", "State", "ExitCode", "Submit", "Start", "End", "NodeList", "AllocTRES")
SUBMIT_TOLERANCE = 600.0
"""Seconds a row's submit time may lie before the cluster time in the receipt."""

_MOST_TASKS = 100_000
_NUMBER = re.compile(r"[0-9]{1,15}\Z")
_NO_TIME = frozenset({"", "Unknown", "None", "NONE", "N/A", "(null)"})
_NO_NODE = frozenset({"", "(null)", "None assigned", "None"})
_TASKS = re.compile(r"([0-9]{1,10})(?:_(?:([0-9]{1,7})|\[([^\[\]]*)\]))?\Z")
_ENDS_LIKE_OURS = re.compile(r"-j[0-9]{2,6}-(?:interpret|beams|convert)\Z")
_RANGE = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7})(?::([1-9][0-9]{0,6}))?)?\Z")


class NotParsed(ValueError):  # noqa: N818 - a statement about the text, like the tree in errors
    """A section that does not have the form it must have; says what was found."""


@dataclass(frozen=True, slots=True)
class Section:
    """One framed section: its text and the exit code of the command that wrote it."""

    text: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task as squeue or sacct shows it. `task` is None for a job that is no array.

    `collapsed`: it comes from a row for many tasks, which Slurm does not always keep up to date. Times are
    epoch seconds, None where Slurm prints none. `raw` is the line as it came, `|` between its fields: what an
    auditor is shown; two rows that say the same are equal whatever their lines.
    """

    job: int
    task: int | None
    name: str
    word: str
    collapsed: bool = False
    by_uid: int | None = None
    reason: str = ""
    exit_code: str = ""
    submit: float | None = None
    start: float | None = None
    end: float | None = None
    node: str = ""
    tres: str = ""
    raw: str = field(default="", compare=False, repr=False)

    @property
    def terminal(self) -> bool:
        """Whether the word says that the task has ended."""
        return self.word in TERMINAL

    @property
    def ending(self) -> bool:
        """Whether the task has ended or is about to: there is nothing to cancel."""
        return self.terminal or self.word == "COMPLETING"


def split_sections(output: str, nonce: str) -> dict[str, Section]:
    """Return the whole sections of `output` by name; what is cut short, or foreign noise, is left out.

    A name whose marks stand twice is left out too: which text is its own cannot be told.
    """
    marks = re.compile(
        rf"{MARK}{re.escape(nonce)} BEGIN (?P<begin>\S+)\n"
        rf"|\n{MARK}{re.escape(nonce)} END (?P<end>\S+) (?P<code>[0-9]{{1,3}})\n"
    )
    whole: dict[str, Section] = {}
    begun: set[str] = set()
    unsure: set[str] = set()
    name, start = "", 0
    for mark in marks.finditer(output):
        if mark["begin"] is not None:
            name, start = mark["begin"], mark.end()
            if name in begun:
                unsure.add(name)
            begun.add(name)
        elif mark["end"] == name:
            whole[name] = Section(output[start : mark.start()], int(mark["code"]))
            name = ""
        else:
            unsure.add(mark["end"])
    return {name: section for name, section in whole.items() if name not in unsure}


def expand_array(expression: str) -> tuple[int, ...]:
    """Return the indices an array expression names: `4-9%2`, `0-20:4`, `1,3,5-7`.

    Raises NotParsed where it is truncated (`...`) or has another form.
    """
    indices: list[int] = []
    for part in re.sub(r"%[0-9]{1,7}\Z", "", expression).split(","):
        match = _RANGE.match(part)
        if match is None:
            raise NotParsed(f"array expression {expression[:200]!r}: {part[:50]!r} is no index and no range")
        run = range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))
        if not run or len(indices) + len(run) > _MOST_TASKS:
            raise NotParsed(f"array expression {expression[:200]!r}: {part!r} is no range, or too many tasks")
        indices.extend(run)
    return tuple(indices)


def parse_squeue(text: str) -> tuple[Row, ...]:
    """Return a row for every task of our names in squeue's output (format SQUEUE_FORMAT).

    Not with `-r`: squeue 22.05 then leaves out the last task of a waiting array in steps (`0-20:4`)."""
    rows: list[Row] = []
    for job, task, state, reason, submit, node, name in _squeue_table(text):
        # squeue says of a job that is no array: task N/A.
        bare = task.isdecimal() or task.startswith("[")
        tasks = "" if task in ("N/A", "") else f"_{task}" if bare else f"_[{task}]"
        if "_" in job:
            raise NotParsed(f"squeue job id {job[:100]!r}")
        word, uid = read_word(state)
        found = _each(job + tasks, "squeue")
        for number, index in found:
            rows.append(
                Row(
                    job=number,
                    task=index,
                    name=name,
                    word=word,
                    collapsed=len(found) > 1,
                    by_uid=uid,
                    reason=reason,
                    submit=_submit(submit),
                    node="" if node in _NO_NODE else node,
                    raw="|".join((job, task, state, reason, submit, node, name)),
                )
            )
    return tuple(rows)


def parse_sacct(text: str) -> tuple[Row, ...]:
    """Return a row for every task of our names in sacct's output.

    That is one of SACCT_FIELDS, `-n -P -X -D`, separator FIELD.
    """
    rows: list[Row] = []
    for line in _lines(text, "sacct"):
        fields = line.split(FIELD)
        if len(fields) != len(SACCT_FIELDS):
            raise _miscounted("sacct", fields, len(SACCT_FIELDS))
        job_id, name, state, exit_code, submit, start, end, node, tres = fields
        if not name.startswith(PREFIX):
            continue
        word, uid = read_word(state)
        found = _each(job_id, "sacct")
        for number, index in found:
            rows.append(
                Row(
                    job=number,
                    task=index,
                    name=name,
                    word=word,
                    collapsed=len(found) > 1,
                    by_uid=uid,
                    exit_code=exit_code,
                    submit=_submit(submit),
                    start=_number(start),
                    end=_number(end),
                    node="" if node in _NO_NODE else node,
                    tres=tres,
                    raw="|".join(fields),
                )
            )
    return tuple(rows)


def belongs(row: Row, *, name: str, job: int, task: int | None, cluster_time: float) -> bool:
    """Whether a row is of our submission: exact name, receipt's id, our index, no older life of the id.

    A row without submit time cannot be told from an older life: it counts while it is unfinished, which
    only makes us wait, and not as an end.
    """
    if (row.name, row.job, row.task) != (name, job, task):
        return False
    return not row.terminal if row.submit is None else row.submit >= cluster_time - SUBMIT_TOLERANCE


def newest(rows: Iterable[Row]) -> Row | None:
    """Return the row submitted last: a requeue gives a task a new row with a later submit time.

    Of one submit time a task's own row outweighs a collapsed one: after a scancel, sacct shows `14_[1-3]
    CANCELLED` although task 1 has started since and has a row of its own.
    """
    return max(rows, key=lambda row: (row.submit or 0.0, not row.collapsed, row.start or 0.0), default=None)


def parse_receipts(text: str) -> Mapping[str, str]:
    """Return receipt line by stage from lines `stage name id time`; others of ours as they are."""
    receipts: dict[str, str] = {}
    # A receipt that was torn on its file system has no end either, and must be seen: it burns its job.
    for line in text.removesuffix("\n").split("\n") if text else []:
        stage, _, rest = line.partition(" ")
        if not rest or stage not in (*STAGES, "claimed", WITHDRAWN) or stage in receipts:
            raise NotParsed(
                f"receipt line {line[:200]!r}: of no stage, of one word, or its stage comes twice"
            )
        receipts[stage] = rest
    return receipts


def _lines(text: str, what: str) -> list[str]:
    """Return the lines of a text. One without its end was cut, an empty one was made by words of another
    program that ran into ours and ended theirs."""
    *lines, rest = text.split("\n")
    if rest or "" in lines:
        raise NotParsed(f"{what}: a line that is empty or has no end: {rest[:200]!r}")
    return lines


def _squeue_table(text: str) -> list[list[str]]:
    """Return the fields of each row of our names; a line of other form may be ours and is refused.

    The name is the last field, and a foreign one may hold line ends (its rest stands in lines without any
    FIELD) or FIELD itself: that is no reason to be blind for as long as such a job lives. But nothing that
    ends like one of our names is passed over so: it may be a row of ours that other words ran into.
    """
    table: list[list[str]] = []
    foreign = False
    *lines, rest = text.split("\n")
    if rest:
        raise NotParsed(f"squeue: the last line has no end: {rest[:200]!r}")
    for line in lines:
        fields = line.split(FIELD)
        passed = fields if foreign and len(fields) == 1 else fields[7:]
        # A digit at its front: a row's id that was torn in two.
        torn = foreign and len(fields) == 1 and line[:1].isdecimal()
        if torn or any(MARK in field or _ENDS_LIKE_OURS.search(field) for field in passed):
            raise _miscounted("squeue", fields, 7)
        if foreign and len(fields) == 1 and "error:" not in line:
            continue
        foreign = len(fields) >= 7 and not fields[6].startswith(PREFIX)
        if foreign:
            continue
        if len(fields) != 7:
            raise _miscounted("squeue", fields, 7)
        table.append(fields)
    return table


def _miscounted(what: str, fields: list[str], count: int) -> NotParsed:
    shown = " | ".join(fields)[:200]
    return NotParsed(f"{what} line of {len(fields)} fields, not {count}: {shown!r}")


def _each(text: str, what: str) -> list[tuple[int, int | None]]:
    """Return (job, task) of a job id as sacct writes it: `12`, `12_3`, `12_[4-9%2]`."""
    match = _TASKS.match(text)
    if match is None:
        raise NotParsed(f"{what} job id {text[:100]!r}")
    job = int(match[1])
    if match[3] is not None:
        return [(job, index) for index in expand_array(match[3])]
    return [(job, None if match[2] is None else int(match[2]))]


def _submit(text: str) -> float | None:
    if text not in _NO_TIME and not _NUMBER.match(text):
        raise NotParsed(f"submit time {text[:50]!r} is not in seconds: SLURM_TIME_FORMAT was not heard")
    return _number(text)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.match(text) else None
