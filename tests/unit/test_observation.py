"""Parsers of the cluster's answers: golden text of real forms, and rubbish of every kind."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqi_hpc.core.observation import (
    FIELD,
    MARK,
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    NotParsed,
    Row,
    Section,
    belongs,
    expand_array,
    newest,
    parse_receipts,
    parse_sacct,
    parse_squeue,
    split_sections,
)

NONCE = "f00dfeed"
OURS = "mqi-i1-abcdefghij12-j01-beams"


def framed(name: str, text: str, code: int = 0) -> str:
    """What the poll script writes for a section."""
    return f"{MARK}{NONCE} BEGIN {name}\n{text}\n{MARK}{NONCE} END {name} {code}\n"


ODD = f"\0\n\r{MARK}{FIELD}\x7f '\"$[]%,:+_-.019BEGINDmqiéß٣\u2028😀"
names = st.text("abc:/-_.019", min_size=1, max_size=6)
# Anything a file may hold, marks of other polls among it; the nonce itself is drawn afresh for each poll.
texts = st.lists(
    st.sampled_from(["\n", MARK, f"{MARK}00 END a 0\n", f"{MARK}00 BEGIN a\n", " END a 0\n", "x", "é", ""])
    | st.text(ODD, max_size=8),
    max_size=6,
).map("".join)
polls = st.dictionaries(names, st.tuples(texts, st.integers(0, 255)), max_size=5)


def whole(sections: dict[str, tuple[str, int]]) -> dict[str, Section]:
    return {name: Section(text, code) for name, (text, code) in sections.items()}


@given(polls)
def test_whole_sections_come_back_as_they_were_written(sections: dict[str, tuple[str, int]]) -> None:
    output = "".join(framed(name, *content) for name, content in sections.items())
    assert split_sections(output, NONCE) == whole(sections)


@given(polls, st.data())
def test_an_output_cut_at_any_place_gives_fewer_sections_never_other_ones(
    sections: dict[str, tuple[str, int]], data: st.DataObject
) -> None:
    output = "".join(framed(name, *content) for name, content in sections.items())
    first = data.draw(st.integers(0, len(output)))
    last = data.draw(st.integers(first, len(output)))
    assert split_sections(output[first:last], NONCE).items() <= whole(sections).items()


@given(polls, st.data())
def test_sections_cut_by_the_cap_on_each_give_fewer_sections_never_other_ones(
    sections: dict[str, tuple[str, int]], data: st.DataObject
) -> None:
    pieces = []
    for name, content in sections.items():
        text = framed(name, *content)
        pieces.append(text[: data.draw(st.integers(0, len(text)))])
    assert split_sections("".join(pieces), NONCE).items() <= whole(sections).items()


@given(polls, st.lists(st.text(ODD, max_size=10) | st.just(MARK), min_size=6, max_size=6))
def test_noise_between_sections_changes_nothing(
    sections: dict[str, tuple[str, int]], noise: list[str]
) -> None:
    framed_ones = [framed(name, *content) for name, content in sections.items()]
    output = "".join(n + f for n, f in zip(noise, [*framed_ones, ""], strict=False))
    assert split_sections(output, NONCE) == whole(sections)


@given(polls)
def test_a_name_that_stands_twice_says_nothing(sections: dict[str, tuple[str, int]]) -> None:
    output = "".join(framed(name, *content) for name, content in sections.items())
    assert split_sections(output + output, NONCE) == {}


@given(polls, st.data())
def test_lines_of_two_answers_mixed_up_give_no_section_that_neither_holds(
    sections: dict[str, tuple[str, int]], data: st.DataObject
) -> None:
    """A second answer breaks into the first one: what comes back whole was written so."""
    output = "".join(framed(name, *content) for name, content in sections.items())
    other = framed("z", "of the other answer")
    at = data.draw(st.integers(0, len(output)))
    found = split_sections(output[:at] + other + output[at:], NONCE)
    found.pop("z", None)
    assert found.items() <= whole(sections).items()


def test_marks_inside_a_text_that_bear_our_nonce_void_it() -> None:
    forged = framed("a", f"x\n{MARK}{NONCE} END a 0\nrest")
    assert split_sections(forged, NONCE) == {}
    nested = framed("a", "x" + framed("b", "inside") + "y")
    assert split_sections(nested, NONCE) == {"b": Section("inside", 0)}
    assert split_sections(framed("a", "x"), "other") == {}


@given(st.text(ODD))
def test_no_rubbish_makes_a_section(text: str) -> None:
    assert split_sections(text, NONCE) == {}


# Arrays


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("7", (7,)),
        ("4-9%2", (4, 5, 6, 7, 8, 9)),
        ("1,3,5-7", (1, 3, 5, 6, 7)),
        ("0-20:4", (0, 4, 8, 12, 16, 20)),
        ("0-20:4%1", (0, 4, 8, 12, 16, 20)),
        ("9201-9203%500", (9201, 9202, 9203)),
        ("1%1", (1,)),
    ],
)
def test_expressions_as_slurm_writes_them(text: str, indices: tuple[int, ...]) -> None:
    assert expand_array(text) == indices


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1-5,...",
        "1-5,7...",
        "...",
        "5-1",
        "1-",
        "-1",
        "1-5:0",
        "a",
        "1,,2",
        "0-9999999",
        "٣",
        "1 ",
        "1%",
        "12345678",
        "0-60000,0-60000",
    ],
)
def test_expressions_cut_short_or_of_no_form_are_refused(text: str) -> None:
    with pytest.raises(NotParsed, match="array expression"):
        expand_array(text)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 40), st.integers(1, 7)), min_size=1, max_size=5)
)
def test_any_expression_names_its_indices(parts: list[tuple[int, int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}:{step}" for first, more, step in parts)
    assert expand_array(text) == tuple(
        index for first, more, step in parts for index in range(first, first + more + 1, step)
    )


# squeue


def queue(*rows: tuple[str, ...]) -> str:
    return "".join(FIELD.join(row) + "\n" for row in rows)


def test_squeue_rows_of_all_forms() -> None:
    assert SQUEUE_FORMAT.count(FIELD) == 6
    text = queue(
        ("101", "N/A", "PENDING", "JobHeldUser", "1700000000", "", "mqi-i1-abcdefghij12-j01-interpret"),
        ("102", "0", "RUNNING", "None", "1700000001", "gpu1", OURS),
        ("102", "[1-2%2]", "PENDING", "Dependency", "1700000001", "(null)", OURS),
        ("102", "5-6", "CANCELLED", "None", "N/A", "", OURS),
    )
    head, running, *rest = parse_squeue(text)
    assert head == Row(
        job=101,
        task=None,
        name="mqi-i1-abcdefghij12-j01-interpret",
        word="PENDING",
        reason="JobHeldUser",
        submit=1_700_000_000.0,
    )
    assert (running.task, running.word, running.node) == (0, "RUNNING", "gpu1")
    assert [(row.task, row.word, row.submit) for row in rest] == [
        (1, "PENDING", 1_700_000_001.0),
        (2, "PENDING", 1_700_000_001.0),
        (5, "CANCELLED", None),
        (6, "CANCELLED", None),
    ]
    assert all(row.node == "" for row in rest)
    assert parse_squeue("") == ()


@pytest.mark.parametrize("noise", ["hello\n", "\n", "error: no\n", f"{MARK}00 BEGIN squeue\n"])
def test_what_another_program_says_in_between_takes_no_row_of_ours_away(noise: str) -> None:
    """Wherever it breaks in, beside a foreign job whose name has lines: the rows are the same, or refused."""
    text = queue(
        ("7", "N/A", "RUNNING", "None", "1700000000", "g1", "foreign\njob"),
        ("8", "N/A", "RUNNING", "None", "1700000000", "g1", OURS),
        ("9", "N/A", "RUNNING", "None", "1700000000", "g1", "other"),
    )
    rows = parse_squeue(text)
    assert [row.job for row in rows] == [8]
    for at in range(len(text) + 1):
        with contextlib.suppress(NotParsed):
            assert parse_squeue(text[:at] + noise + text[at:]) == rows


def test_two_rows_that_ran_into_one_are_refused() -> None:
    fields = ("N/A", "RUNNING", "None", "1700000000", "g1")
    text = queue(("7", *fields, "foreign"), ("8", *fields, OURS)).replace("foreign\n", "foreign")
    with pytest.raises(NotParsed, match="13 fields"):
        parse_squeue(text)


@pytest.mark.parametrize("task", ["[1-3]]", "[[1-3]]", "[1-3", "1-3]", "]"])
def test_brackets_of_an_array_that_do_not_match_are_refused(task: str) -> None:
    with pytest.raises(NotParsed):
        parse_squeue(queue(("8", task, "PENDING", "None", "1700000000", "", OURS)))


def test_a_queue_of_slurm_22_05_with_an_array_cancelled_half_way_and_a_name_of_two_lines() -> None:
    """Taken from a real cluster: cancelled elements that never began have no row of their own."""
    name = "mqi-probe-aaaaaaaaaaaa-j01-beams"
    text = queue(
        ("14", "N/A", "CANCELLED", "JobArrayTaskLimit", "1795512719", "", name),
        ("14", "1", "CANCELLED", "None", "1795512719", "g1", name),
        ("15", "N/A", "CANCELLED", "JobHeldUser", "1795512719", "", "mqi-probe-aaaaaaaaaaaa-j01-interpret"),
        ("16", "N/A", "COMPLETED", "None", "1795512719", "g1", "odd name\nx\n\ny"),
        ("14", "0", "COMPLETED", "None", "1795512719", "g1", name),
    )
    assert [(row.job, row.task, row.word) for row in parse_squeue(text)] == [
        (14, None, "CANCELLED"),
        (14, 1, "CANCELLED"),
        (15, None, "CANCELLED"),
        (14, 0, "COMPLETED"),
    ]


def test_a_line_that_does_not_follow_a_foreign_name_is_not_its_rest() -> None:
    with pytest.raises(NotParsed, match="squeue line of 1 fields, not 7: 'x'"):
        parse_squeue(queue(("102", "0", "RUNNING", "None", "1", "gpu1", OURS + "\nx")))
    with pytest.raises(NotParsed, match="Unable to contact"):
        parse_squeue(
            queue(("16", "N/A", "RUNNING", "None", "1", "g1", "foreign"))
            + "slurm_load_jobs error: Unable to contact slurm controller\n"
        )


def test_other_jobs_of_the_user_are_passed_over_whatever_their_form() -> None:
    text = queue(
        ("55+0", "N/A", "RUNNING", "None", "yesterday", "n1", "het job"),
        ("56", "1-5,...", "MOONSTRUCK", "None", "", "n1", "sweep"),
        ("", "", "", "", "", "", ""),
        ("57", "N/A", "RUNNING", "None", "1", "n1", "a name", "with", "our separator"),
        ("102", "0", "RUNNING", "None", "1", "gpu1", OURS),
    )
    assert [row.job for row in parse_squeue(text)] == [102]


@pytest.mark.parametrize(
    "row",
    [
        ("102", "0", "RUNNING", "None", "1", OURS),
        ("102", "0", "RUNNING", "None", "1", "gpu1", OURS, "more"),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)",),
        ("102+1", "0", "RUNNING", "None", "1", "gpu1", OURS),
        ("102_0", "N/A", "RUNNING", "None", "1", "gpu1", OURS),
        ("", "0", "RUNNING", "None", "1", "gpu1", OURS),
        ("9" * 5000, "0", "RUNNING", "None", "1", "gpu1", OURS),
        ("102", "[0-3,...]", "PENDING", "None", "1", "", OURS),
        ("102", "[0-3,...", "PENDING", "None", "1", "", OURS),
        ("102", "x", "RUNNING", "None", "1", "gpu1", OURS),
        ("102", "0", "RUNNING", "None", "2026-01-01T00:00:00", "gpu1", OURS),
        ("102", "0", "RUNNING", "None", "9" * 400, "gpu1", OURS),
    ],
)
def test_a_line_that_may_be_ours_and_cannot_be_read_voids_the_section(row: tuple[str, ...]) -> None:
    with pytest.raises(NotParsed):
        parse_squeue(queue(("101", "0", "RUNNING", "None", "1", "gpu1", OURS), row))


# sacct


def accounted(job_id: str, name: str = OURS, state: str = "COMPLETED", **other: str) -> str:
    fields = {"ExitCode": "0:0", "Submit": "1700000000", "Start": "1700000010", "End": "1700000020"}
    fields |= {"NodeList": "gpu1", "AllocTRES": "cpu=1,gres/gpu=1"}
    values = fields | {"JobID": job_id, "JobName": name, "State": state} | other
    return FIELD.join(values[field] for field in SACCT_FIELDS) + "\n"


def test_sacct_rows_of_all_forms() -> None:
    single, task, *pending = parse_sacct(
        accounted("101", "mqi-x-interpret", "FAILED", ExitCode="1:0")
        + accounted("102_4", Start="Unknown", End="Unknown", NodeList="None assigned")
        + accounted("102_[5-6%1]", state="CANCELLED by 1000", Start="None")
    )
    assert (single.job, single.task, single.word, single.exit_code) == (101, None, "FAILED", "1:0")
    assert (single.start, single.end, single.tres) == (1_700_000_010.0, 1_700_000_020.0, "cpu=1,gres/gpu=1")
    assert (task.task, task.start, task.end, task.node) == (4, None, None, "")
    assert [(r.task, r.word, r.by_uid, r.terminal) for r in pending] == [
        (5, "CANCELLED", 1000, True),
        (6, "CANCELLED", 1000, True),
    ]
    assert not parse_sacct(accounted("102_7", state="RUNNING"))[0].terminal


def test_the_accounting_of_that_array_tells_each_task_by_its_own_row() -> None:
    """Taken from a real cluster: the collapsed row still names task 1, which had started since."""
    name = "mqi-probe-aaaaaaaaaaaa-j01-beams"
    text = (
        accounted("15", "mqi-probe-aaaaaaaaaaaa-j01-interpret", "CANCELLED by 1000", Start="None")
        + accounted("14_0", name)
        + accounted("14_1", name, "TIMEOUT")
        + accounted("14_[1-3%1]", name, "CANCELLED by 1000", Start="None", NodeList="None assigned")
    )
    rows = parse_sacct(text)
    told = {task: newest(r for r in rows if (r.job, r.task) == (14, task)) for task in range(4)}
    assert [(r.word, r.collapsed) for r in told.values() if r is not None] == [
        ("COMPLETED", False),
        ("TIMEOUT", False),
        ("CANCELLED", True),
        ("CANCELLED", True),
    ]


def test_rows_of_other_jobs_het_jobs_and_steps_are_passed_over() -> None:
    text = (
        accounted("123+0", "het")
        + accounted("123_4.batch", "batch")
        + accounted("7_[1-5,...", "sweep")
        + accounted("102_0")
    )
    assert [(row.job, row.task) for row in parse_sacct(text)] == [(102, 0)]


@pytest.mark.parametrize("job_id", ["102+0", "102_4.batch", "102_[1-5,...", "102_[1-5,...]", "102_", "", "x"])
def test_an_id_of_ours_that_cannot_be_read_voids_the_section(job_id: str) -> None:
    with pytest.raises(NotParsed):
        parse_sacct(accounted(job_id))


def test_an_error_text_or_a_cut_line_voids_the_section() -> None:
    cut = accounted("102_1")[:-40]
    for text in ("sacct: error: Problem talking to the database\n", f"{cut}\n"):
        with pytest.raises(NotParsed, match="fields"):
            parse_sacct(text)
    for text in (cut, accounted("102_1")[:-1], f"{accounted('102_1')}\n"):
        with pytest.raises(NotParsed, match="empty or has no end"):
            parse_sacct(text)
    with pytest.raises(NotParsed, match="SLURM_TIME_FORMAT"):
        parse_sacct(accounted("102_1", Submit="2026-01-01T10:00:00"))


@given(st.text(ODD))
@example(FIELD * 8)
@example(f"1{FIELD}mqi-{FIELD * 7}")
def test_sacct_rubbish_is_refused_or_passed_over_and_never_crashes(text: str) -> None:
    with contextlib.suppress(NotParsed):
        assert all(row.name.startswith("mqi-") for row in parse_sacct(text))


@given(st.text(ODD))
@example(FIELD * 6)
@example(f"1{FIELD * 6}mqi-")
def test_squeue_rubbish_is_refused_or_passed_over_and_never_crashes(text: str) -> None:
    with contextlib.suppress(NotParsed):
        assert all(row.name.startswith("mqi-") for row in parse_squeue(text))


queue_rows = st.tuples(
    st.sampled_from(["102", "1", "67043327"]),
    st.sampled_from(["N/A", "0", "999", "[1-3%2]", "4-9"]),
    st.sampled_from(["RUNNING", "PENDING", "CANCELLED by 7", "CANCELLED", "MOONSTRUCK"]),
    st.sampled_from(["None", "JobHeldUser", "launch failed requeued held", ""]),
    st.sampled_from(["1700000000", "Unknown", "N/A"]),
    st.sampled_from(["gpu1", "", "(null)"]),
    st.sampled_from([OURS, "mqi-other", "someone else's"]),
)


@given(st.lists(queue_rows, max_size=4), st.data())
def test_a_queue_cut_within_the_rows_never_shows_a_row_that_was_not_there(
    rows: list[tuple[str, ...]], data: st.DataObject
) -> None:
    """Even without its end mark a cut text gives no row of other content, but for its very last field."""
    text = queue(*rows)
    full = parse_squeue(text)
    cut = text[: data.draw(st.integers(0, len(text)))]
    try:
        found = parse_squeue(cut)
    except NotParsed:
        return
    known = {name for *_, name in rows}
    kept = [row for row in found if row.name in known]
    assert kept == list(full[: len(kept)])


# Which row counts


def row(**changes: Any) -> Row:
    base: dict[str, Any] = {"job": 102, "task": 1, "name": OURS, "word": "COMPLETED", "submit": 1000.0}
    return Row(**{**base, **changes})


def mine(candidate: Row, cluster_time: float = 1000.0) -> bool:
    return belongs(candidate, name=OURS, job=102, task=1, cluster_time=cluster_time)


def test_a_row_is_ours_by_exact_name_id_index_and_time() -> None:
    assert mine(row())
    assert not mine(row(name=OURS + "x"))
    assert not mine(row(name=OURS.upper()))
    assert not mine(row(job=103))
    assert not mine(row(task=2))
    assert not mine(row(task=None))
    assert mine(row(), cluster_time=1600.0)
    assert not mine(row(), cluster_time=1600.5)


def test_a_row_without_submit_time_makes_us_wait_but_ends_nothing() -> None:
    assert mine(row(submit=None, word="RUNNING"))
    assert not mine(row(submit=None, word="COMPLETED"))


def test_the_newest_life_of_a_task_is_the_one_submitted_last() -> None:
    old, new = row(submit=1.0, word="REQUEUED"), row(submit=2.0)
    assert newest([new, old]) is new
    assert newest(iter((old, new))) is new
    started = row(submit=2.0, start=3.0)
    assert newest((new, started)) is started
    assert newest((row(submit=None), old)) is old
    assert newest(()) is None
    collapsed = row(submit=2.0, collapsed=True, start=9.0)
    assert newest((collapsed, new)) is new
    assert newest((row(submit=3.0, collapsed=True), new)) == row(submit=3.0, collapsed=True)


# Receipts


def test_receipts_by_stage() -> None:
    text = f"interpret {OURS} 101 1700000000\nclaimed interpret\n"
    assert parse_receipts(text) == {"interpret": f"{OURS} 101 1700000000", "claimed": "interpret"}
    assert parse_receipts("") == {}


@pytest.mark.parametrize(
    "text", ["interpret\n", "interpret \n", "beams a 1 2\nbeams a 1 2\n", "Last login: today\n"]
)
def test_receipts_of_no_form_or_no_stage_or_twice_are_refused(text: str) -> None:
    with pytest.raises(NotParsed, match="receipt line"):
        parse_receipts(text)


def test_a_receipt_that_was_torn_on_its_file_system_is_seen() -> None:
    assert parse_receipts("beams a 1 2\ninterpret mqi-i1") == {"beams": "a 1 2", "interpret": "mqi-i1"}
