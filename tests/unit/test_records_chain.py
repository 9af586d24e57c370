"""chain.json: comes back as it was written, and refuses what contradicts itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records.chain import (
    DIALECTS,
    DOSE_TYPES,
    Calibration,
    Chain,
    ChainBeam,
    ChainSubmission,
    Grid,
    Interpreted,
    Settings,
    decode_chain,
    encode_chain,
)
from mqi_hpc.records.form import FormatError
from mqi_hpc.records.layout import STAGES, submission_name

KEY, A, B = "abcdefghij12", "a" * 64, "b" * 64


def beam(index: int, **changes: Any) -> ChainBeam:
    made = ChainBeam(
        index=index,
        number=index + 2,
        name=f"G{index}",
        log_folder=f"{index:02d}_G{index}",
        energies=(160.0, 150.5),
        input_digest=A,
        seed=index,
    )
    return replace(made, **changes)


def submissions(
    *array: int, job: str = "j01", stages: tuple[str, ...] = STAGES
) -> tuple[ChainSubmission, ...]:
    return tuple(
        ChainSubmission(
            stage=stage,
            name=submission_name("i1", KEY, job, stage),
            script_digest=B,
            indices=array if stage == "beams" else (0,),
            dependency={"beams": "afterok:interpret", "convert": "afterany:beams"}.get(stage),
        )
        for stage in stages
    )


CHAIN = Chain(
    site="s",
    instance="i1",
    key=KEY,
    job="j01",
    plan_uid="1.2.3",
    beams=(beam(0), beam(1), beam(2)),
    submissions=submissions(0, 1, 2),
    interpreted=Interpreted("j01"),
    stages_digest=A,
    audit_head="",
    settings=Settings(
        calibration=Calibration("G2", -1.0, 0.5, 0.01, 0.02, 0.06, {"2": 1.0, "3": 2.5}),
        grid=Grid((2, 3, 4), (2.0, 3.0, 1.0), (-10.0, 0.0, 5.5)),
        log_dialect=DIALECTS[0],
        engine=("tps_env", "--flag with blank"),
        engine_name="moqui",
        require_gpu=True,
        dose_type=DOSE_TYPES[1],
    ),
)
RESUBMITTED = replace(
    CHAIN,
    job="j02",
    beams=(beam(0, source_job="j01"), beam(1), beam(2, source_job="j02")),
    submissions=submissions(1, 2, job="j02", stages=STAGES[1:]),
    interpreted=Interpreted("j01", A),
)
CONVERTED = replace(
    CHAIN,
    job="j03",
    beams=(beam(0, source_job="j01"), beam(1, source_job="j02"), beam(2)),
    submissions=submissions(job="j03", stages=STAGES[2:]),
    interpreted=Interpreted("j01", A),
)


@pytest.mark.parametrize("chain", [CHAIN, RESUBMITTED, CONVERTED])
def test_a_chain_comes_back_as_it_was_written(chain: Chain) -> None:
    text = encode_chain(chain)
    assert decode_chain(text) == chain
    assert encode_chain(decode_chain(text)) == text
    assert text.isascii()
    assert text.endswith("}\n")


def test_the_text_of_a_chain_does_not_change_between_versions_of_this_program() -> None:
    assert encode_chain(replace(CHAIN, beams=(beam(0),), submissions=submissions(0))).startswith(
        '{"audit_head":"","beams":[{"energies":[160.0,150.5],"index":0,"input_digest":"aaaa'
    )


@given(
    st.lists(
        st.tuples(
            st.text("aé\n\"\\'$", max_size=4),
            st.lists(st.floats(0, 300), max_size=3).map(tuple),
            st.integers(0, 2**63),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_beams_come_back(drawn: list[tuple[str, tuple[float, ...], int]]) -> None:
    beams = tuple(beam(n, name=name, energies=e, seed=seed) for n, (name, e, seed) in enumerate(drawn))
    chain = replace(CHAIN, beams=beams, submissions=submissions(*range(len(beams))))
    assert decode_chain(encode_chain(chain)) == chain


def test_beams_and_submissions_are_found_or_refused() -> None:
    assert CHAIN.beam(2).number == 4
    assert CHAIN.submission("convert").stage == "convert"
    with pytest.raises(FormatError, match="no beam of index 3"):
        CHAIN.beam(3)
    with pytest.raises(FormatError, match="no submission of stage 'upload'"):
        CHAIN.submission("upload")


@pytest.mark.parametrize(
    ("chain", "stages", "computed", "jobs"),
    [
        (CHAIN, STAGES, (0, 1, 2), ("j01", "j01", "j01")),
        (RESUBMITTED, STAGES[1:], (1, 2), ("j01", "j02", "j02")),
        (CONVERTED, STAGES[2:], (), ("j01", "j02", None)),
    ],
)
def test_a_chain_knows_what_it_does_itself_and_where_each_dose_is(
    chain: Chain, stages: tuple[str, ...], computed: tuple[int, ...], jobs: tuple[str | None, ...]
) -> None:
    assert (chain.stages, chain.computed) == (stages, computed)
    assert tuple(chain.dose_job(beam) for beam in chain.beams) == jobs


def test_a_whole_job_may_compute_some_beams_and_leave_the_others() -> None:
    chain = replace(CHAIN, job="j02", interpreted=Interpreted("j02"), submissions=submissions(1, job="j02"))
    assert decode_chain(encode_chain(chain)) == chain
    assert [chain.dose_job(beam) for beam in chain.beams] == [None, "j02", None]


TWO: Any = (2, 3)
FLAT = Grid(TWO, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
CONTRADICTIONS: list[tuple[Chain, str]] = [
    (replace(CHAIN, version=2), "version 2, this program reads 1"),
    (replace(CHAIN, key="short"), "no key or job"),
    (replace(CHAIN, job="j1"), "no key or job"),
    (replace(CHAIN, interpreted=Interpreted("j00")), "no key or job"),
    (replace(CHAIN, beams=()), "indices"),
    (replace(CHAIN, beams=(beam(0, number=0), beam(1), beam(2))), "number should be an integer from 1"),
    (replace(CHAIN, beams=(beam(1), beam(0), beam(2))), r"indices \[1, 0, 2\]"),
    (replace(CHAIN, beams=(beam(0), beam(2))), "indices"),
    (replace(CHAIN, beams=(beam(0), beam(1, number=2), beam(2))), "two beams have one number"),
    (replace(CHAIN, beams=(beam(0, source_job="x"), beam(1), beam(2))), "source_job 'x' is no job"),
    (replace(CHAIN, beams=(beam(0, source_job="j09"), beam(1), beam(2))), "computed here and taken from j09"),
    *(
        (replace(RESUBMITTED, submissions=submissions(0, 1, job="j02", stages=stages)), "are no chain: int")
        for stages in itertools.chain(
            *(itertools.permutations(STAGES, count) for count in range(4)), [("convert", "convert")]
        )
        if stages not in (STAGES, STAGES[1:], STAGES[2:])
    ),
    (replace(RESUBMITTED, beams=(beam(0, source_job="j02"), beam(1), beam(2))), "taken from here and not"),
    (replace(CONVERTED, beams=(beam(0, source_job="j03"), beam(1), beam(2))), "taken from here and not"),
    (replace(RESUBMITTED, interpreted=Interpreted("j02")), "interpret is not among the submissions of j02"),
    (replace(CONVERTED, interpreted=Interpreted("j03")), "interpret is not among the submissions of j03"),
    (replace(CHAIN, interpreted=Interpreted("j03", A)), "interpret is among the submissions of j01"),
    (replace(CONVERTED, submissions=(replace(CONVERTED.submissions[0], indices=(1,)),)), "array indices"),
    (replace(CHAIN, submissions=submissions(0, 1, 2, job="j02")), "is named 'mqi-i1-abcdefghij12-j02"),
    (replace(CHAIN, instance="i2"), "is named"),
    (replace(CHAIN, submissions=submissions()), r"beams has the array indices \[\]"),
    (replace(CHAIN, submissions=submissions(0, 3)), "array indices"),
    (replace(CHAIN, submissions=submissions(1, 0)), "array indices"),
    (replace(CHAIN, submissions=submissions(1, 1)), "array indices"),
    (
        replace(CHAIN, submissions=(replace(submissions(0)[0], indices=(1,)), *submissions(0)[1:])),
        r"interpret has the array indices \[1\]",
    ),
    (replace(CHAIN, interpreted=Interpreted("j01", A)), "interpret record"),
    (replace(CHAIN, interpreted=Interpreted("j02")), "interpret record"),
    (replace(CHAIN, settings=replace(CHAIN.settings, log_dialect="other")), "log_dialect"),
    (replace(CHAIN, settings=replace(CHAIN.settings, dose_type="GUESSED")), "dose_type"),
    (replace(CHAIN, settings=replace(CHAIN.settings, engine=())), "engine"),
    (
        replace(CHAIN, settings=replace(CHAIN.settings, grid=FLAT)),
        "grid",
    ),
    (
        replace(
            CHAIN, settings=replace(CHAIN.settings, grid=Grid((2, 3, 4), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)))
        ),
        "no three-dimensional grid",
    ),
    (
        replace(
            CHAIN, settings=replace(CHAIN.settings, grid=Grid((2, 3, 0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
        ),
        "should be an integer from 1",
    ),
]


@pytest.mark.parametrize(("chain", "said"), CONTRADICTIONS)
def test_a_chain_that_contradicts_itself_is_refused(chain: Chain, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        decode_chain(encode_chain(chain))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead to it."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


TREE = json.loads(encode_chain(RESUBMITTED))
NULLABLE = {"source_job", "record_digest", "dependency"}


def holder(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("path", places(TREE), ids=str)
def test_at_every_place_another_kind_of_value_is_refused(path: tuple[Any, ...]) -> None:
    tree = json.loads(encode_chain(RESUBMITTED))
    for wrong in ({"x": [None]}, None):
        if wrong is None and path[-1] in NULLABLE:
            continue
        holder(tree, path)[path[-1]] = wrong
        with pytest.raises(FormatError):
            decode_chain(json.dumps(tree))


@pytest.mark.parametrize(
    "path", [p for p in places(TREE) if isinstance(p[-1], str) and p[-2:-1] != ("dose1_factors",)], ids=str
)
def test_every_key_must_be_there_and_no_other(path: tuple[Any, ...]) -> None:
    tree = json.loads(encode_chain(RESUBMITTED))
    value = holder(tree, path).pop(path[-1])
    with pytest.raises(FormatError, match=f"{path[-1]} is missing"):
        decode_chain(json.dumps(tree))
    holder(tree, path).update({path[-1]: value, "intruder": 1})
    with pytest.raises(FormatError, match="unknown keys intruder"):
        decode_chain(json.dumps(tree))


@given(st.integers(0, 4000))
def test_a_chain_cut_short_is_refused(length: int) -> None:
    text = encode_chain(RESUBMITTED).rstrip()
    with pytest.raises(FormatError):
        decode_chain(text[: min(length, len(text) - 1)])
