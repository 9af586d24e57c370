"""The plan of a chain: names, options, arrays, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.chain_plan import (
    MAX_BEAMS,
    StageCall,
    StageResources,
    array_expression,
    default_comment,
    plan_calls,
    plan_submissions,
)
from mqi_hpc.core.errors import ConfigurationError, ProcessingError
from mqi_hpc.core.models import STAGES, Beam
from mqi_hpc.core.observation import expand_array

KEY = "abcdefghij12"
FOLDER = f"/scratch/qa/{KEY}/j01"
PLAIN = StageResources(partition=None, time="01:00:00", memory="4G", cpus=2)
RESOURCES = {
    "interpret": PLAIN,
    "beams": StageResources(
        partition="gpu", time="02:00:00", memory="8G", cpus=1, gres="gpu:1", extra=("--constraint=a100",)
    ),
    "convert": PLAIN,
}


def beams(*indices: int) -> list[Beam]:
    return [
        Beam(index=n, number=n + 3, name=f"G{n}", energies=(100.0,), input_digest="a" * 64, seed=n)
        for n in indices
    ]


def calls(
    *indices: int, folder: str = FOLDER, comment: str = "qa, room 5", gpu_count: int | None = None,
    account: str | None = None, qos: str | None = None, stages: Sequence[str] = STAGES,
    waits_for: Sequence[tuple[str, str]] = (),
) -> tuple[StageCall, ...]:  # fmt: skip
    chosen = beams(*(indices or (0, 1, 2))) if "beams" in stages else ()
    return plan_calls(
        plan_submissions("i1", KEY, 1, chosen, stages),
        RESOURCES,
        folder=folder,
        comment=comment,
        account=account,
        qos=qos,
        gpu_count=gpu_count,
        waits_for=waits_for,
    )


@given(st.sets(st.integers(0, MAX_BEAMS - 1), min_size=1), st.none() | st.integers(1, 8))
def test_an_expression_names_its_indices_and_fits_what_slurm_takes(
    indices: set[int], throttle: int | None
) -> None:
    text = array_expression(indices, throttle)
    assert expand_array(text) == tuple(sorted(indices))
    assert len(text) <= 4096
    assert text.endswith(f"%{throttle}") is (throttle is not None)


def test_the_longest_expression_fits_what_slurm_takes() -> None:
    assert len(array_expression(range(0, MAX_BEAMS, 2), 1000)) <= 4096


@pytest.mark.parametrize(("indices", "throttle"), [([], None), ([-1, 0], None), ([0], 0), ([0], -1)])
def test_an_array_of_nothing_is_refused(indices: list[int], throttle: int | None) -> None:
    with pytest.raises(ValueError, match="an array has elements"):
        array_expression(indices, throttle)


def test_the_three_submissions_of_a_job() -> None:
    found = plan_submissions("i1", KEY, 12, beams(5, 2))
    assert [(s.stage, s.name, s.indices, s.slurm_id) for s in found] == [
        ("interpret", f"mqi-i1-{KEY}-j12-interpret", (0,), None),
        ("beams", f"mqi-i1-{KEY}-j12-beams", (2, 5), None),
        ("convert", f"mqi-i1-{KEY}-j12-convert", (0,), None),
    ]


def test_a_job_may_leave_out_what_it_takes_from_an_older_one() -> None:
    found = plan_submissions("i1", KEY, 2, beams(1), STAGES[1:])
    assert [(s.stage, s.name, s.indices) for s in found] == [
        ("beams", f"mqi-i1-{KEY}-j02-beams", (1,)),
        ("convert", f"mqi-i1-{KEY}-j02-convert", (0,)),
    ]
    (alone,) = plan_submissions("i1", KEY, 3, (), ["convert"])
    assert (alone.stage, alone.name, alone.indices) == ("convert", f"mqi-i1-{KEY}-j03-convert", (0,))


@pytest.mark.parametrize(
    "stages",
    [(), STAGES[:1], STAGES[:2], STAGES[1:2], STAGES[::2], STAGES[::-1], ("convert", "convert"), ("upload",)],
)
def test_stages_that_are_no_chain_are_refused(stages: tuple[str, ...]) -> None:
    with pytest.raises(ProcessingError, match=rf"job j02 of {KEY}: the stages .* are no chain.*the last two"):
        plan_submissions("i1", KEY, 2, beams(0), stages)


def test_convert_alone_computes_no_beams() -> None:
    with pytest.raises(ProcessingError, match=r"indices \[4\] cannot be computed by convert alone"):
        plan_submissions("i1", KEY, 2, beams(4), STAGES[2:])
    with pytest.raises(ProcessingError, match="cannot be one Slurm array"):
        plan_submissions("i1", KEY, 2, (), STAGES[1:])


@pytest.mark.parametrize("indices", [(), (1, 1), (-1,), (0, MAX_BEAMS), range(MAX_BEAMS + 1)])
def test_beams_that_are_no_array_are_refused_in_words(indices: tuple[int, ...]) -> None:
    with pytest.raises(ProcessingError, match=rf"job j01 of {KEY}: .*cannot be one Slurm array.*1 to 1000"):
        plan_submissions("i1", KEY, 1, beams(*indices))


def test_many_indices_are_shown_by_their_ends() -> None:
    with pytest.raises(ProcessingError, match=r"1001 beams with array indices 0 to 1000 cannot"):
        plan_submissions("i1", KEY, 1, beams(*range(1001)))
    with pytest.raises(
        ProcessingError, match=r"8 beams with array indices \[1, 1, 1, 1, 1, 1, 1, 1\] cannot"
    ):
        plan_submissions("i1", KEY, 1, beams(*[1] * 8))


def test_as_many_beams_as_an_array_holds_are_taken() -> None:
    assert len(plan_submissions("i1", KEY, 1, beams(*range(MAX_BEAMS)))[1].indices) == MAX_BEAMS


@pytest.mark.parametrize("instance", ["", "a" * 33, "x.y_z-1"])
def test_names_have_the_form_slurm_keeps(instance: str) -> None:
    for submission in plan_submissions(instance, KEY, 1, beams(0)):
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", submission.name)


@pytest.mark.parametrize("instance", ["a" * 34, "a b", "a,b", "ä", "a\n", "$(id)"])
def test_an_instance_that_makes_other_names_is_refused(instance: str) -> None:
    with pytest.raises(ConfigurationError, match="instance id"):
        plan_submissions(instance, KEY, 1, beams(0))


def test_the_whole_chain() -> None:
    interpret, array, convert = calls(0, 1, 2, gpu_count=2, account="physics", qos="low")
    assert interpret == StageCall(
        stage="interpret",
        name=f"mqi-i1-{KEY}-j01-interpret",
        options=(
            "--account=physics",
            "--qos=low",
            "--cpus-per-task=2",
            "--mem=4G",
            "--time=01:00:00",
            "--parsable",
            f"--job-name=mqi-i1-{KEY}-j01-interpret",
            "--comment=qa, room 5",
            "--no-requeue",
            "--export=NONE",
            f"--chdir={FOLDER}",
            f"--output={FOLDER}/logs/interpret-%A.log",
            "--open-mode=append",
            "--nodes=1",
            "--ntasks=1",
            "--hold",
        ),
        depends=None,
        held=True,
    )
    assert array.options == (
        "--constraint=a100",
        "--partition=gpu",
        "--account=physics",
        "--qos=low",
        "--gres=gpu:1",
        "--cpus-per-task=1",
        "--mem=8G",
        "--time=02:00:00",
        "--parsable",
        f"--job-name=mqi-i1-{KEY}-j01-beams",
        "--comment=qa, room 5",
        "--no-requeue",
        "--export=NONE",
        f"--chdir={FOLDER}",
        f"--output={FOLDER}/logs/beams-%A_%a.log",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks=1",
        "--array=0-2%2",
    )
    assert (array.depends, array.held) == (("afterok", "interpret"), False)
    assert (convert.depends, convert.held) == (("afterany", "beams"), False)
    assert f"--output={FOLDER}/logs/convert-%A.log" in convert.options
    assert [call.stage for call in (interpret, array, convert)] == ["interpret", "beams", "convert"]


@pytest.mark.parametrize("stages", [STAGES, STAGES[1:], STAGES[2:]])
def test_only_the_head_is_held_only_beams_are_an_array_and_nothing_kills_by_itself(
    stages: tuple[str, ...],
) -> None:
    made = calls(4, 7, stages=stages)
    assert tuple(call.stage for call in made) == stages
    for call in made:
        head = call.stage == stages[0]
        assert ("--hold" in call.options, call.held, call.depends is None) == (head, head, head)
        assert any(o.startswith("--array=") for o in call.options) is (call.stage == "beams")
        assert any(o.startswith("--gres=") for o in call.options) is (call.stage == "beams")
        assert not any(o.startswith(("--kill-on-invalid-dep", "--dependency")) for o in call.options)


OLDER = [("j01", f"mqi-i1-{KEY}-j01-beams"), ("j02", f"mqi-i1-{KEY}-j02-beams")]


@pytest.mark.parametrize(
    ("stages", "older", "said"),
    [
        (STAGES, 0, [None, "afterok:interpret", "afterany:beams"]),
        (STAGES, 1, [None, "afterok:interpret", "afterany:beams:j01/beams"]),
        (STAGES[1:], 0, [None, "afterany:beams"]),
        (STAGES[1:], 2, [None, "afterany:beams:j01/beams:j02/beams"]),
        (STAGES[2:], 1, ["afterany:j01/beams"]),
        (STAGES[2:], 0, [None]),
    ],
)
def test_convert_waits_for_older_arrays_too(
    stages: tuple[str, ...], older: int, said: list[str | None]
) -> None:
    made = calls(stages=stages, waits_for=OLDER[:older])
    assert [call.dependency for call in made] == said
    assert [call.waits_for for call in made] == [*[()] * (len(stages) - 1), tuple(OLDER[:older])]


@pytest.mark.parametrize(
    ("extra", "left", "said"),
    [
        ((), ("g2", "g1"), ["--exclude=g1,g2"]),
        (("--exclude=g9", "--exclude=g[3-4],g2"), ("g1", "g2"), ["--exclude=g1,g2,g[3-4],g2"]),
        (("--exclude=g9",), (), ["--exclude=g9"]),
        ((), (), []),
    ],
)
def test_nodes_are_left_out_beside_those_of_the_sites_own(
    extra: tuple[str, ...], left: tuple[str, ...], said: list[str]
) -> None:
    resources = {**RESOURCES, "beams": replace(RESOURCES["beams"], extra=extra, left_out=left)}
    submissions = plan_submissions("i1", KEY, 1, beams(0, 1, 2), STAGES)
    made = plan_calls(
        submissions, resources, folder=FOLDER, comment="qa", account=None, qos=None, gpu_count=None
    )
    excludes = [option for option in made[1].options if option.startswith("--exclude")]
    # sbatch takes the last of an option.
    assert excludes[-1:] == said
    assert not any(option.startswith("--exclude") for call in made[::2] for option in call.options)


@pytest.mark.parametrize(("gpus", "array"), [(None, "0-2"), (1, "0-2%1"), (3, "0-2%3"), (8, "0-2%3")])
def test_the_throttle_is_the_budget_or_the_beams_whichever_is_less(gpus: int | None, array: str) -> None:
    assert f"--array={array}" in calls(0, 1, 2, gpu_count=gpus)[1].options


@pytest.mark.parametrize("comment", ["two\nlines", "x" * 1024, "é" * 512, "\x1f"])
def test_a_comment_slurm_would_not_keep_is_refused(comment: str) -> None:
    with pytest.raises(ConfigurationError, match=r"slurm\.comment"):
        calls(0, comment=comment)


@pytest.mark.parametrize("folder", ["scratch/j01", "/scratch/%j/j01", "/scratch\\x", "/scratch/\nj01", ""])
def test_a_folder_slurm_would_read_in_another_way_is_refused(folder: str) -> None:
    with pytest.raises(ConfigurationError, match=r"paths\.remote_workspace"):
        calls(0, folder=folder)


# The words of each refusal: what, where and what to do, as people read them


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: plan_submissions("i1", KEY, 2, beams(0), ("interpret", "beams")),
         f"job j02 of {KEY}: the stages interpret, beams are no chain. A job has the stages interpret, beams, "  # noqa: E501
         "convert, or the last two, or the last of them"),
        (lambda: plan_submissions("i1", KEY, 2, beams(0), ()),
         f"job j02 of {KEY}: the stages (none) are no chain. A job has the stages interpret, beams, convert, or "  # noqa: E501
         "the last two, or the last of them"),
        (lambda: plan_submissions("a b", KEY, 1, beams(0)),
         f"instance id 'a b': 'mqi-a b-{KEY}-j01-interpret' is no job name that Slurm keeps everywhere. The name "  # noqa: E501
         "may have 64 characters: letters, digits, . _ and -"),
        (lambda: plan_submissions("i1", KEY, 2, beams(4), STAGES[2:]),
         f"job j02 of {KEY}: beams with array indices [4] cannot be computed by convert alone. Give the job the "  # noqa: E501
         "stage beams too, or no beams"),
        (lambda: plan_submissions("i1", KEY, 1, beams(*[1] * 9)),
         f"job j01 of {KEY}: 9 beams with array indices 1 to 1 cannot be one Slurm array. A job takes 1 to 1000 "  # noqa: E501
         "beams, each with an index of its own below 1000"),
        (lambda: calls(0, folder="X%"),
         "paths.remote_workspace: 'X%' cannot be a job's folder. Slurm needs an absolute path and reads % and "  # noqa: E501
         "backslash in it as patterns"),
        (lambda: calls(0, comment="a\n" + "x" * 2000),
         "slurm.comment: the comment 'a\\n" + "x" * 58 + "' cannot be given to Slurm. It should be one line of "  # noqa: E501
         "less than 1024 bytes; without it, app.name and app.environment make the comment"),
        (lambda: array_expression([]), "an array has elements from 0 on, and at least one of them may run"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_where_and_what_to_do(refused: Callable[[], object], words: str) -> None:
    with pytest.raises((ConfigurationError, ProcessingError, ValueError)) as error:
        refused()
    assert str(error.value) == words


@pytest.mark.parametrize("folder", ["/scratch/X/j01", "/scratch/a b/j01"])
def test_other_folders_are_taken(folder: str) -> None:
    assert f"--chdir={folder}" in calls(0, folder=folder)[0].options


@pytest.mark.parametrize(
    ("environment", "beside"), [("test", " (test)"), ("XXXX", " (XXXX)"), ("production", ""), ("", "")]
)
def test_the_comment_of_an_installation_tells_what_it_is(environment: str, beside: str) -> None:
    about = "unattended proton beam QA; ask the owner of this account"
    assert default_comment("QA", environment) == f"QA{beside}, {about}"


def test_an_expression_is_as_short_as_it_can_be() -> None:
    assert array_expression([5, 0, 1, 2, 5, 7], 4) == "0-2,5,7%4"


@pytest.mark.parametrize(
    ("extra", "left_out", "exclude"),
    [
        ((), (), []),
        (("--exclude=n9",), (), ["--exclude=n9"]),
        ((), ("g2", "g1"), ["--exclude=g1,g2"]),
        # sbatch hears the last one alone: it must name the site's own nodes too.
        (("--exclude=a=1", "--exclude=n=9", "--nice=5"), ("g2",),
         ["--exclude=a=1", "--exclude=n=9", "--exclude=g2,n=9"]),
        (("--reservation=x", "--exclude=g2"), ("g2",), ["--exclude=g2", "--exclude=g2"]),
    ],
)  # fmt: skip
def test_nodes_to_avoid_are_added_to_those_a_site_avoids(
    extra: tuple[str, ...], left_out: tuple[str, ...], exclude: list[str]
) -> None:
    want = replace(RESOURCES["beams"], extra=extra, left_out=left_out)
    chain = plan_calls(
        plan_submissions("i1", KEY, 1, beams(0)),
        {**RESOURCES, "beams": want},
        folder=FOLDER,
        comment="qa",
        account=None,
        qos=None,
        gpu_count=None,
    )
    assert [option for option in chain[1].options if option.startswith("--exclude")] == exclude
