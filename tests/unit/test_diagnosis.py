"""What doctor makes of answers: good ones, failures, and rubbish."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core import slurm_checks as checks
from mqi_hpc.core.diagnosis import (
    CheckStatus,
    Finding,
    Said,
    exit_code,
    failure,
    fields,
    judge_clock,
    judge_sessions,
    judge_shell,
    judge_tools,
    ok,
    shortly,
    skipped,
    warning,
)
from mqi_hpc.core.node_facts import NodeSaid, NodeWish, judge_node
from mqi_hpc.core.slurm_facts import (
    SEPARATOR,
    StageWish,
    number,
    offers,
    parse_config,
    parse_partitions,
    seconds,
    told_at,
)
from mqi_hpc.core.workspace_facts import WorkspaceWish, judge_workspace

OK, WARNING, FAILURE, SKIPPED = CheckStatus.OK, CheckStatus.WARNING, CheckStatus.FAILURE, CheckStatus.SKIPPED
anything = st.text(max_size=300)
saids = st.builds(Said, st.integers(0, 255), anything, anything)

CONFIG = """Configuration data as of 2026-11-24T12:01:24
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = mqi
MaxArraySize            = 1001
MinJobAge               = 300 sec
SchedulerParameters     = batch_sched_delay=0,default_queue_depth=200
PowerPlugin             = 

Slurmctld(primary) at login is UP
"""  # noqa: W291 - as scontrol prints it
AT = 1795521684


def sinfo(*rows: Sequence[str]) -> str:
    return "".join(SEPARATOR.join(row) + "\n" for row in rows)


SINFO = sinfo(
    ("gpu*", "up", "1-00:00:00", "gpu:a100:4(S:0-1)", "2", "idle"),
    ("gpu*", "up", "1-00:00:00", "(null)", "1", "mixed"),
    ("cpu", "up", "infinite", "(null)", "1", "idle"),
    ("old", "down", "1:00:00", "gpu:4", "1", "idle"),
    ("away", "up", "1:00:00", "gpu:4", "3", "down*"),
)


def statuses(findings: Sequence[Finding]) -> list[CheckStatus]:
    return [finding.status for finding in findings]


def sound(finding: Finding) -> None:
    """Whatever is found: a check's name, words, and a cure exactly where something is to be cured."""
    assert finding.check
    assert finding.found
    assert bool(finding.cure) == (finding.status in (WARNING, FAILURE))


# Findings


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([ok("a", "x"), warning("b", "x", "y"), skipped("c", "x")], 0),
        ([ok("a", "x"), failure("b", "x", "y")], 1),
        ([failure("b", "x", "y"), failure("login", "x", "y")], 4),
        ([failure("host key", "x", "y")], 4),
        ([failure("configuration", "x", "y")], 2),
    ],
)
def test_exit_codes(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(124, ""), "no answer in time"),
        (Said(137, "", "half\na word"), "no answer in time; half a word"),
        (Said(1, "out"), "out"),
        (Said(1, "out", "err"), "err"),
        (Said(7, ""), "exit code 7, and it said nothing"),
    ],
)
def test_what_a_failed_command_said(said: Said, words: str) -> None:
    assert said.words == words


def test_fields_are_lines_with_an_equals_sign() -> None:
    assert fields("noise\na=1\n=2\nb = x=y \na=3") == {"a": "3", "b": "x=y"}


@given(anything)
def test_a_short_text_is_one_printable_line(text: str) -> None:
    line = shortly(text, 20)
    assert line.isprintable()
    assert len(line) <= 23


# The shell


def test_a_silent_profile_is_fine_and_a_chatty_one_a_warning() -> None:
    assert judge_shell(b"\n").status is OK
    said = judge_shell(b"Welcome to \x1b[1mthe cluster\xff")
    assert said.status is WARNING
    assert "Welcome to" in said.found
    assert "\x1b" not in said.found


def test_missing_tools_are_named() -> None:
    assert judge_tools(Said(0, "")).status is OK
    assert "sha256sum, tar" in judge_tools(Said(0, "sha256sum\ntar\n")).found
    assert judge_tools(Said(124, "")).status is FAILURE


@pytest.mark.parametrize(
    ("opened", "status", "word"), [(4, OK, "4"), (1, WARNING, "1 session "), (2, WARNING, "2 sessions")]
)
def test_sessions(opened: int, status: CheckStatus, word: str) -> None:
    finding = judge_sessions(opened, 4, "refused")
    assert finding.status is status
    assert word in finding.found


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("1000000000\n", OK),
        ("1000000070\n", OK),
        ("1000000072\n", WARNING),
        ("0999999900\n", WARNING),
        ("soon", WARNING),
    ],
)
def test_clocks_may_differ_by_a_minute(told: str, status: CheckStatus) -> None:
    finding = judge_clock(1e9, 1e9 + 10, Said(0, told))
    assert finding.status is status
    sound(finding)


@given(st.binary(max_size=200), saids, st.integers(0, 9), st.floats(0, 1e11))
def test_rubbish_of_a_shell_is_judged(noise: bytes, said: Said, count: int, now: float) -> None:
    for finding in (
        judge_shell(noise),
        judge_tools(said),
        judge_sessions(count, 4, "x"),
        judge_clock(now, now + 1, said),
    ):
        sound(finding)


# Slurm


def test_settings_are_read() -> None:
    settings = parse_config(CONFIG)
    assert settings["MinJobAge"] == "300 sec"
    assert settings["PowerPlugin"] == ""
    assert "Slurmctld(primary) at login is UP" not in settings
    assert told_at(CONFIG) == AT
    assert told_at("Configuration data as of 2026-99-99T12:01:24") is None
    assert told_at("") is None
    assert [number(text) for text in ("300 sec", "1001", "", "x", "-1")] == [300, 1001, None, None, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 1800),
        ("10:30", 630),
        ("01:00:00", 3600),
        ("2-00", 172800),
        ("1-12:30", 131400),
        ("1-00:00:01", 86401),
        ("infinite", float("inf")),
        ("UNLIMITED", float("inf")),
        ("", None),
        ("n/a", None),
        ("1" * 50, None),
    ],
)
def test_times_of_slurm(text: str, value: float | None) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("have", "want", "can"),
    [
        ("gpu:4", "gpu:1", True),
        ("gpu:4", "gpu", True),
        ("gpu:4", "gpu:5", False),
        ("gpu:a100:2(S:0-1)", "gpu:1", True),
        ("gpu:a100:2(S:0-1)", "gpu:a100:2", True),
        ("gpu:a100:2(S:0,1),gpu:v100:1", "gpu:v100", True),
        ("gpu:a100:1,gpu:v100:1", "gpu:2", True),
        ("gpu:a100:2", "gpu:h100:1", False),
        ("gpu:a100:2,license:5", "gpu:a100:1,license:1", True),
        ("gpu:a100:2", "gpu:1,license:1", False),
        ("shard:8", "gpu:1", False),
        ("(null)", "gpu:1", False),
        ("", "gpu:1", False),
        ("gpu:4", "?", False),
    ],
)
def test_generic_resources_cover_a_request(have: str, want: str, can: bool) -> None:
    assert offers(have, want) is can


def test_partitions_are_read() -> None:
    found = parse_partitions(SINFO + "noise\n" + sinfo(("x", "up", "1", "", "many", "idle")))
    assert sorted(found) == ["away", "cpu", "gpu", "old"]
    assert found["gpu"].default
    assert [group.nodes for group in found["gpu"].groups] == [2, 1]
    assert found["away"].groups[0].away
    assert not found["cpu"].groups[0].away


def wish(partition: str | None, *, time: str = "1:00:00", gres: str | None = None) -> StageWish:
    return StageWish(stage="beams", partition=partition, time=time, gres=gres)


@pytest.mark.parametrize(
    ("asked", "status", "word"),
    [
        (wish("gpu", gres="gpu:1"), OK, "2 nodes with gpu:1"),
        (wish(None, gres="gpu:1"), OK, "gpu is up"),
        (wish("cpu"), OK, "1 node,"),
        (wish("cpu", time="365-0"), OK, "limit infinite"),
        (wish("gpux"), FAILURE, "no partition gpux"),
        (wish("cpu,gpu", gres="gpu:1"), OK, "gpu is up"),
        (wish("gpu", time="2-00"), FAILURE, "allows 1-00:00:00"),
        (wish("gpu", gres="gpu:h100:1"), FAILURE, "no node of gpu can give gpu:h100:1"),
        (wish("cpu", gres="gpu:1"), FAILURE, "no node of cpu"),
        (wish("old"), WARNING, "old is down"),
        (wish("away", gres="gpu:1"), WARNING, "no node of away takes jobs now (down*)"),
    ],
)
def test_partitions_are_judged(asked: StageWish, status: CheckStatus, word: str) -> None:
    (finding,) = checks.judge_partitions(Said(0, SINFO), [asked])
    assert finding.status is status
    assert word in finding.found
    assert finding.check == "partition (beams)"
    sound(finding)


def test_a_cluster_without_a_default_partition() -> None:
    (finding,) = checks.judge_partitions(Said(0, SINFO.replace("*", "")), [wish(None)])
    assert finding.status is FAILURE
    assert "away, cpu, gpu, old" in finding.cure
    (silent,) = checks.judge_partitions(Said(1, "", "sinfo: error"), [wish(None)])
    assert "sinfo: error" in silent.found


@pytest.mark.parametrize(
    ("out", "status"),
    [
        ("slurm-wlm 22.05.8", OK),
        ("slurm 24.11.5", OK),
        ("slurm 26.05.0-0rc1", OK),
        ("slurm 23.11.4", OK),
        ("slurm 21.08.5", WARNING),
        ("slurm 27.05.1", WARNING),
        ("what?", WARNING),
    ],
)
def test_versions(out: str, status: CheckStatus) -> None:
    assert checks.judge_version(Said(0, out)).status is status


def test_commands_that_are_not_there_are_named() -> None:
    lines = "".join(f"{name}=/usr/bin/{name}\n" for name in checks.COMMANDS)
    assert checks.judge_commands(Said(0, lines)).status is OK
    finding = checks.judge_commands(Said(0, lines.replace("sacct=/usr/bin/sacct", "sacct=")))
    assert finding.found.endswith("sacct")


def test_the_controller_answers_or_not() -> None:
    assert checks.judge_controller(Said(0, CONFIG)).status is OK
    for said in (None, Said(1, "", "connect failure"), Said(0, "")):
        assert checks.judge_controller(said).status is FAILURE


@pytest.mark.parametrize(
    ("login", "status"),
    [
        (AT + 5, OK),
        (AT + 100, WARNING),
        (AT - 5000, WARNING),
        (AT + 300, FAILURE),
    ],
)
def test_the_login_nodes_clock_must_not_run_ahead_of_slurms(login: int, status: CheckStatus) -> None:
    finding = checks.judge_slurm_clock(Said(0, f"{login}\n"), Said(0, CONFIG))
    assert finding.status is status
    sound(finding)


def test_clocks_that_are_not_told_are_not_compared() -> None:
    assert checks.judge_slurm_clock(Said(0, "soon"), Said(0, CONFIG)).status is SKIPPED
    assert checks.judge_slurm_clock(Said(0, str(AT)), Said(0, "")).status is SKIPPED


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"MaxArraySize": "1001", "MinJobAge": "300 sec"}, [OK, OK, OK]),
        ({"MaxArraySize": "50", "MinJobAge": "2 sec"}, [WARNING, WARNING, OK]),
        ({"MaxArraySize": "0", "MinJobAge": "0 sec"}, [FAILURE, OK, OK]),
        ({}, [SKIPPED, SKIPPED, OK]),
        ({"DependencyParameters": "kill_invalid_depend"}, [SKIPPED, SKIPPED, OK]),
    ],
)
def test_settings_that_matter(settings: dict[str, str], expected: list[CheckStatus]) -> None:
    for off in (False, True):
        found = checks.judge_config(settings, poll_max=180, accounting_off=off)
        assert statuses(found) == expected
    text = " ".join(finding.found for finding in found)
    assert ("kill_invalid_depend" in text) == ("DependencyParameters" in settings)


DBD, NONE = (
    {"AccountingStorageType": "accounting_storage/slurmdbd"},
    {"AccountingStorageType": "accounting_storage/none"},
)
REFUSED = Said(1, "", "sacct: error: Sending PersistInit msg: Connection refused")


@pytest.mark.parametrize(
    ("said", "settings", "mode", "status"),
    [
        (Said(0, ""), DBD, "auto", OK),
        (Said(0, ""), DBD, "off", OK),
        (REFUSED, DBD, "off", OK),
        (REFUSED, DBD, "auto", FAILURE),
        (Said(0, "", "sacct: error: Problem talking to the database"), DBD, "on", FAILURE),
        (Said(1, "", "Slurm accounting storage is disabled"), NONE, "auto", WARNING),
        (Said(1, "", "Slurm accounting storage is disabled"), {}, "on", FAILURE),
        (Said(124, ""), {}, "auto", FAILURE),
    ],
)
def test_accounting(said: Said, settings: dict[str, str], mode: str, status: CheckStatus) -> None:
    finding = checks.judge_accounting(said, settings, mode)
    assert finding.status is status
    sound(finding)


ENFORCED = {"AccountingStorageEnforce": "associations,limits", "ClusterName": "mqi"}


@pytest.mark.parametrize(
    ("said", "settings", "account", "status", "word"),
    [
        (Said(0, "mqi|lab||normal\n"), ENFORCED, "lab", OK, "lab"),
        (Said(0, "mqi|lab||normal\n"), ENFORCED, None, OK, "lab"),
        (Said(0, "other|lab||normal\n"), ENFORCED, "lab", FAILURE, "account lab on mqi"),
        (Said(0, "mqi|lab||normal\n"), ENFORCED, "lba", FAILURE, "lab would do"),
        (Said(0, ""), ENFORCED, None, FAILURE, "any account"),
        (Said(0, ""), {"ClusterName": "mqi"}, None, OK, "none needed"),
        (Said(0, "mqi|lab||\n"), {"AccountingStorageEnforce": "associations"}, "x", FAILURE, "this cluster"),
        (Said(1, "", "no db"), ENFORCED, None, SKIPPED, "no db"),
    ],
)
def test_associations(
    said: Said, settings: dict[str, str], account: str | None, status: CheckStatus, word: str
) -> None:
    finding = checks.judge_association(said, settings, "mqi", account)
    assert finding.status is status
    assert word in finding.found
    sound(finding)


@pytest.mark.parametrize(
    ("said", "status", "word"),
    [
        (Said(0, "", "sbatch: Job 5 to start at ..."), OK, ""),
        (Said(1, "", "sbatch: error: invalid partition specified: x"), FAILURE, "invalid partition"),
        (Said(1, "", "sbatch: error: AssocMaxSubmitJobLimit"), WARNING, "AssocMaxSubmitJobLimit"),
        (Said(124, "", ""), FAILURE, "no answer"),
    ],
)
def test_a_trial_submission(said: Said, status: CheckStatus, word: str) -> None:
    finding = checks.judge_test("beams", said)
    assert finding.status is status
    assert word in finding.found
    sound(finding)


@given(saids, saids, st.sampled_from(["auto", "on", "off"]), st.sampled_from([None, "a", "a,b", ""]))
def test_rubbish_of_slurm_is_judged(said: Said, other: Said, mode: str, name: str | None) -> None:
    settings = parse_config(other.out)
    for finding in (
        checks.judge_commands(said),
        checks.judge_version(said),
        checks.judge_controller(said),
        checks.judge_slurm_clock(said, other),
        *checks.judge_config(settings, poll_max=180, accounting_off=mode == "off"),
        checks.judge_accounting(said, settings, mode),
        checks.judge_association(said, settings, "u", name),
        *checks.judge_partitions(said, [wish(name, gres=other.out[:5] or None)]),
        checks.judge_test("beams", said),
    ):
        sound(finding)


@given(
    st.lists(st.lists(st.text("gpu:*(),aNul1", max_size=8), min_size=6, max_size=6)),
    st.text("gpu:1,", max_size=6),
)
def test_rubbish_of_sinfo_is_judged(rows: list[list[str]], gres: str) -> None:
    for finding in checks.judge_partitions(Said(0, sinfo(*rows)), [wish(None, gres=gres), wish("gpu")]):
        sound(finding)


# The workspace

SEEN = {
    "kind": "directory",
    "me": "mqi",
    "user": "mqi",
    "mode": "700",
    "fs": "nfs",
    "free_kib": "1000000",
    "free_inodes": "1000000",
    "quota": "",
    "entries": "0",
    "write": "ok",
    "link": "ok",
    "rename": "ok",
    "sync": "ok",
    "case": "ok",
}


def workspace(least: float = 1e8, instance: str | None = "abcdef", **changes: str) -> dict[str, Finding]:
    text = "".join(f"{name}={value}\n" for name, value in {**SEEN, **changes}.items() if value != "-")
    found = judge_workspace(Said(0, text), WorkspaceWish(path="/ws", instance=instance, min_free_bytes=least))
    for finding in found:
        sound(finding)
    return {finding.check.removeprefix("workspace").strip(): finding for finding in found}


def test_a_good_workspace() -> None:
    assert {f.status for f in workspace().values()} == {OK}
    mine = workspace(has_owner="yes", owner="abcdef")
    assert "this installation" in mine["owner"].found


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"kind": "absent"}, OK, "not there yet"),
        ({"kind": "regular file"}, FAILURE, "regular file"),
        ({"kind": "-"}, FAILURE, "cannot be told"),
        ({"write": "mktemp: Permission denied"}, FAILURE, "Permission denied"),
        ({"write": "-"}, FAILURE, "not known"),
        ({"kind": "absent", "write": "denied"}, FAILURE, "cannot be made"),
        ({"mode": "777"}, WARNING, "mode 777"),
        ({"mode": "-"}, OK, ""),
        ({"user": "root"}, WARNING, "belongs to root"),
    ],
)
def test_access_to_the_workspace(changes: dict[str, str], status: CheckStatus, word: str) -> None:
    finding = workspace(**changes)[""]
    assert finding.status is status
    assert word in finding.found


@pytest.mark.parametrize(
    ("changes", "instance", "status"),
    [
        ({"kind": "absent"}, None, SKIPPED),
        ({"entries": "3"}, None, WARNING),
        ({"has_owner": "yes", "owner": "ghijkl"}, "abcdef", FAILURE),
        ({"has_owner": "yes", "owner": "ghijkl"}, None, FAILURE),
        ({"has_owner": "yes", "owner": ""}, "abcdef", FAILURE),
    ],
)
def test_the_workspaces_owner(changes: dict[str, str], instance: str | None, status: CheckStatus) -> None:
    finding = workspace(instance=instance, **changes)["owner"]
    assert finding.status is status
    assert ("--adopt" in finding.cure) == (status is FAILURE)


def test_links_that_do_not_hold_are_a_failure() -> None:
    assert workspace(write="untried")["links"].status is SKIPPED
    finding = workspace(link="a second link takes the place of the first", case="-")["links"]
    assert finding.status is FAILURE
    assert "second link" in finding.found
    assert "case: no answer" in finding.found


@pytest.mark.parametrize(
    ("least", "changes", "status"),
    [
        (1e8, {}, OK),
        (1e12, {}, FAILURE),
        (0, {"free_kib": "-"}, WARNING),
        (0, {"free_inodes": "5"}, WARNING),
        (0, {"free_inodes": "0"}, OK),
        (0, {"free_inodes": "-"}, OK),
        (0, {"quota": "over"}, WARNING),
    ],
)
def test_the_workspaces_space(least: float, changes: dict[str, str], status: CheckStatus) -> None:
    assert workspace(least, **changes)["space"].status is status


@given(st.one_of(st.none(), saids, st.builds(lambda t: Said(0, t), anything)))
def test_rubbish_of_a_workspace_is_judged(said: Said | None) -> None:
    found = judge_workspace(said, WorkspaceWish(path="/ws", instance=None, min_free_bytes=1))
    assert len(found) == 4
    for finding in found:
        sound(finding)


@given(
    st.dictionaries(st.sampled_from([*SEEN, "has_owner", "owner"]), st.text("okdirectory=0789\n", max_size=9))
)
def test_a_workspace_seen_in_any_way_is_judged(changes: dict[str, str]) -> None:
    workspace(**changes)


# Nodes

ANSWER = "node=g1\ntoken=t\npython=3.11.2\nnumpy=1.24.2\npydicom=2.3.1\nengine=/opt/tps\n"
ANSWER += "gpu=0\ngpu_name=GPU 0: A100\n"


def node(
    answer: str, *, gpu: bool = True, engine: str | None = "tps", state: str = "answered"
) -> list[Finding]:
    asked = NodeWish(stages=("beams",), python="python3", engine=engine, gpu=gpu, token="t")
    found = judge_node(NodeSaid(state=state, detail="Priority", answer=answer), asked)
    for finding in found:
        sound(finding)
    return found


def test_a_good_node() -> None:
    assert statuses(node(ANSWER)) == [OK] * 4
    assert statuses(node(ANSWER, gpu=False, engine=None)) == [OK] * 2


@pytest.mark.parametrize(
    ("old", "new", "at", "word"),
    [
        ("token=t", "token=", 0, "not its files"),
        ("python=3.11.2", "python=3.8.10", 1, "Python 3.8.10"),
        ("python=3.11.2", "python_error=exit code 127", 1, "exit code 127"),
        ("python=3.11.2", "", 1, "no word"),
        ("numpy=1.24.2", "numpy=!No module named numpy", 1, "no numpy (No module"),
        ("numpy=1.24.2", "", 1, "no numpy (no word)"),
        ("pydicom=2.3.1", "pydicom=2.2.0", 1, "pydicom 2.2.0 is too old"),
        ("engine=/opt/tps", "engine=", 2, "tps is not found on g1"),
        ("gpu=0", "gpu=", 3, "no GPU"),
        ("gpu=0", "gpu=NoDevFiles", 3, "no GPU"),
    ],
)
def test_a_bad_node(old: str, new: str, at: int, word: str) -> None:
    found = node(ANSWER.replace(old, new, 1))
    assert statuses(found) == [FAILURE if i == at else OK for i in range(4)]
    assert word in found[at].found


def test_a_gpu_without_a_name_is_one_all_the_same() -> None:
    assert statuses(node(ANSWER.replace("gpu_name=GPU 0: A100", "")))[3] is OK


@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        ("pending", WARNING, "the queue is busy (Priority)"),
        ("running", WARNING, "did not end in time"),
        ("refused", FAILURE, "Priority"),
        ("over", FAILURE, "without a word"),
        ("unknown", WARNING, "did not say in time"),
        ("answered", FAILURE, "without a word"),
    ],
)
def test_a_job_that_told_nothing(state: str, status: CheckStatus, word: str) -> None:
    (finding,) = node("", state=state)
    assert finding.status is status
    assert word in finding.found


def test_a_job_of_which_nothing_is_known() -> None:
    asked = NodeWish(stages=("interpret", "convert"), python="p", engine=None, gpu=False, token="t")
    for said in (None, NodeSaid(state="pending"), NodeSaid(state="over")):
        (finding,) = judge_node(said, asked)
        assert finding.check == "node (interpret, convert)"
        sound(finding)


@given(anything, st.sampled_from(["answered", "over", "running", "?"]))
def test_rubbish_of_a_node_is_judged(answer: str, state: str) -> None:
    node(answer, state=state)
    node(f"node=g1\n{answer}", state=state)
