"""`audit verify` on both stores: whatever is done to the events in the file is found and named."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from mqi_hpc.controllers.container import Container
from mqi_hpc.core.models import SubmitState
from mqi_hpc.main import run
from mqi_hpc.records.layout import CHAIN
from tests.support.bench import make_case

KEY = make_case().case_id


@pytest.fixture(params=["mqi.sqlite", "mqi.json"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An installation with a case whose job was sent, and its workspace on this machine."""
    (tmp_path / "cases").mkdir()
    path = tmp_path / "config.yaml"
    settings = {
        "app": {"state_file": str(tmp_path / "state" / request.param), "site": "here"},
        "paths": {"local_logdata": str(tmp_path / "cases"), "remote_workspace": str(tmp_path / "work")},
        "transport": "local",
    }
    path.write_text(yaml.safe_dump(settings))
    (tmp_path / "state").mkdir()
    container = Container.open(path, tell=None)
    store = container.parts.store
    with store.transaction() as unit:
        unit.event("task", KEY, {"task": "x", "to": "running", "phase": "", "detail": "one"})
        unit.cases.put(make_case().evolve(instance=store.instance))
    job = container.jobs.create_job(KEY)
    with store.transaction() as unit:
        unit.jobs.put(job.evolve(submit_state=SubmitState.STANDING))
        unit.event("task", KEY, {"task": "x", "to": "running", "phase": "", "detail": "two"})
        unit.event("task", KEY, {"task": "x", "to": "failed", "phase": "", "detail": "three"})
        chain = unit.jobs.files(job.job_id)[CHAIN]
    folder = tmp_path / "work" / KEY / "j01"
    folder.mkdir(parents=True)
    (folder / CHAIN).write_bytes(chain)
    (tmp_path / "work" / ".owner").write_text(f"{store.instance}\n")
    container.close()
    return path


def verified(capsys: pytest.CaptureFixture[str], config: Path, *options: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["--config", str(config), "audit", "verify", "--json", *options])
    said = json.loads(capsys.readouterr().out)
    return code, said


def tamper(config: Path, sql: str, *, row: Callable[[str], list[str]]) -> None:
    """Change the store's file by hand: by `sql`, or what `row` makes of the lines of events."""
    path = next(p for p in (config.parent / "state").iterdir() if p.suffix in (".sqlite", ".json"))
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript(f"DROP TRIGGER events_stay; DROP TRIGGER events_remain; {sql}")
        return
    lines = path.read_text().split("\n")
    changed = [made for line in lines for made in row(line)]
    content, seal, _ = "\n".join(changed).rpartition('"checksum": "')
    path.write_text(f'{content}{seal}{hashlib.sha256(content.encode()).hexdigest()}"}}\n')


def is_event(line: str, text: str) -> bool:
    return f'"{text}"' in line


def test_a_log_that_nobody_touched(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(capsys, config)
    assert (code, said["faults"], said["anchors"]) == (0, [], 1)
    assert said["events"] >= 4
    code, again = verified(capsys, config, "--cluster", "--head", said["head"])
    assert (code, again["faults"]) == (0, [])
    assert again["notes"] == ["1 chain.json on the cluster compared"]
    assert run(["--config", str(config), "audit", "verify"]) == 0
    assert f"head {said['head']}: write it down" in capsys.readouterr().out


def test_a_changed_event(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(
        config,
        "UPDATE events SET data=replace(data, 'two', 'ten')",
        row=lambda line: [line.replace('"two"', '"ten"')],
    )
    code, said = verified(capsys, config)
    assert code == 1
    assert "has been changed" in said["faults"][0]
    assert run(["--config", str(config), "audit", "verify"]) == 1
    told = capsys.readouterr().out
    assert "FAULT  event " in told
    assert "compare it with the newest backup" in told


def test_a_missing_event(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(
        config,
        "DELETE FROM events WHERE data LIKE '%two%'",
        row=lambda line: [] if is_event(line, "two") else [line],
    )
    code, said = verified(capsys, config)
    assert code == 1
    assert "is missing" in said["faults"][0]


def test_the_end_cut_off(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, before = verified(capsys, config)
    path = next(p for p in (config.parent / "state").iterdir() if p.suffix in (".sqlite", ".json"))
    if path.suffix == ".json":
        # The last line has no comma behind it: the one before it becomes the last.
        lines = path.read_text().split("\n")
        last = next(n for n, line in enumerate(lines) if is_event(line, "three"))
        del lines[last]
        lines[last - 1] = lines[last - 1].rstrip(",")
        content, seal, _ = "\n".join(lines).rpartition('"checksum": "')
        path.write_text(f'{content}{seal}{hashlib.sha256(content.encode()).hexdigest()}"}}\n')
    else:
        tamper(config, "DELETE FROM events WHERE data LIKE '%three%'", row=lambda line: [line])
    code, said = verified(capsys, config)
    assert code == 1
    assert said["faults"] == [f"events after event {before['events'] - 1} have been cut off"]


def test_a_head_that_is_in_no_event(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(capsys, config, "--head", "a" * 64)
    assert code == 1
    assert "no event has the digest aaaa" in said["faults"][0]


def test_what_the_cluster_says(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "work" / KEY / "j01"
    whole = (folder / CHAIN).read_bytes()
    (folder / CHAIN).write_bytes(whole.replace(b'"seed"', b'"sead"', 1))
    code, said = verified(capsys, config, "--cluster")
    assert code == 1
    assert "on the cluster is another than the store's" in said["faults"][0]
    (folder / CHAIN).unlink()
    code, said = verified(capsys, config, "--cluster")
    assert code == 0
    assert said["notes"][1] == "1 jobs have nothing on the cluster any more (pruned?)"
    (folder / CHAIN).write_bytes(whole)
    other = config.parent / "work" / "abcdefabcdef" / "j01"
    other.mkdir(parents=True)
    (other / CHAIN).write_bytes(whole)
    code, said = verified(capsys, config, "--cluster")
    assert code == 1
    assert "abcdefabcdef/j01 is on the cluster, and the store does not know it" in said["faults"][0]


def test_a_workspace_of_another_and_one_that_is_gone(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "work" / ".owner").write_text("somebody\n")
    assert run(["--config", str(config), "audit", "verify", "--cluster"]) == 2
    assert "belongs to instance 'somebody'" in capsys.readouterr().err
    (config.parent / "work").rename(config.parent / "elsewhere")
    assert run(["--config", str(config), "audit", "verify", "--cluster"]) == 2
    assert "entering the workspace failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "the store has lost it"),
        (lambda text: text[:-20], "it cannot be read"),
        (lambda _: b"\xff", "it cannot be read"),
        (lambda text: text.replace(b"j01", b"j02"), "it is of"),
    ],
)
def test_a_chain_json_that_says_nothing(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[bytes], bytes | None],
    said: str,
) -> None:
    container = Container.open(config, tell=None)
    job_id = f"{KEY}-j01"
    with container.parts.store.transaction() as unit:
        files = unit.jobs.files(job_id)
        text = make(files.pop(CHAIN))
        unit.jobs.put_files(job_id, {**files, **({} if text is None else {CHAIN: text})})
    container.close()
    code, found = verified(capsys, config)
    assert code == 1
    assert said in found["faults"][0]


def test_without_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    paths = {"local_logdata": str(tmp_path / "cases"), "remote_workspace": "/w"}
    state = str(tmp_path / "x" / "y.sqlite")
    path.write_text(yaml.safe_dump({"app": {"state_file": state}, "paths": paths, "transport": "local"}))
    assert run(["--config", str(path), "audit", "verify"]) == 2
    assert "there is no store to verify" in capsys.readouterr().err


def test_why_tells_the_story(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", str(config), "why", KEY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("j01 planned: interpret, beams, convert" in line for line in lines)
    assert all(line[:4].isdigit() for line in lines)
    assert run(["--config", str(config), "why", KEY, "--json"]) == 0
    assert [one["kind"] for one in json.loads(capsys.readouterr().out)][-1] == "task"
    assert run(["--config", str(config), "why", KEY, "--beam", "77"]) == 1
    assert "has no beam 77" in capsys.readouterr().err
