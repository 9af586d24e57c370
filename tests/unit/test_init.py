"""What init writes loads, what is there is left alone, and nobody else's identity is taken."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mqi_hpc.cli.doctor import doctor
from mqi_hpc.cli.init import init
from mqi_hpc.controllers import setup
from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.controllers.setup import Wishes, begin, missing
from mqi_hpc.core.errors import ConfigurationError, LockHeld, StateError
from mqi_hpc.infrastructure.config import ConfigLoader
from mqi_hpc.infrastructure.config.writer import config_text, write_config
from mqi_hpc.infrastructure.state import load_or_create_instance

app = typer.Typer(pretty_exceptions_enable=False)


@app.callback()
def options(config: Annotated[Path | None, typer.Option("--config")] = None) -> None: ...


app.command()(doctor)
app.command()(init)


def wishes(tmp_path: Path, **more: Any) -> Wishes:
    return Wishes(
        **{
            "host": "hpc",
            "logdata": tmp_path / "cases",
            "workspace": "/scratch/mqi",
            "state": tmp_path / "state" / "mqi.sqlite",
            **more,
        }
    )


def local(tmp_path: Path, **paths: str) -> Path:
    """A configuration whose cluster is this machine."""
    path = tmp_path / "config.yaml"
    chosen = {
        "transport": "local",
        "app.state_file": str(tmp_path / "state" / "mqi.sqlite"),
        "paths.local_logdata": str(tmp_path / "cases"),
        "paths.remote_workspace": str(tmp_path / "ws"),
        "paths.local_results": str(tmp_path / "results"),
    }
    write_config(path, chosen)
    return path


def lose_store(tmp_path: Path) -> Path:
    store = tmp_path / "state" / "mqi.sqlite"
    for left in store.parent.glob("mqi.sqlite*"):
        if left.suffix != ".instance":
            left.unlink()
    return store


# The file


def test_what_is_written_loads_and_says_what_was_chosen(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.yaml"
    begun = begin(path, wishes(tmp_path, user="me", port=2222, partition="gpu", account="lab"), force=False)
    config = ConfigLoader().load(path)
    assert begun.written
    assert begun.kept is None
    assert (config.ssh.host, config.ssh.port, config.ssh.username) == ("hpc", 2222, "me")
    assert (config.slurm.partition, config.slurm.account) == ("gpu", "lab")
    assert config.paths.local_results == tmp_path / "state" / "results"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in begun.made} == {0o700}
    assert begun.identity_file.exists()
    assert any("cases" in note for note in begun.notes)


def test_every_comment_is_the_default_it_says(tmp_path: Path) -> None:
    """Without its comment marks the file sets every setting, and changes none."""
    chosen = {
        "ssh.host": "h",
        "paths.local_logdata": "/c",
        "paths.remote_workspace": "/w",
        "paths.local_results": "/r",
    }
    text = config_text(chosen)
    _, _, body = text.partition("\n\n")
    bare = re.sub(r"^(\s*)# (?=[a-z_]+:)", r"\1", body, flags=re.MULTILINE)
    assert bare.count("\n  ") > 50
    where = tmp_path / "config.yaml"
    assert ConfigLoader().parse(bare, where) == ConfigLoader().parse(text, where)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(names, names, names)
def test_any_value_is_kept_or_refused_in_words(user: str, folder: str, site: str) -> None:
    chosen = {
        "ssh.host": "h",
        "ssh.username": user,
        "app.site": site,
        "paths.local_logdata": f"/cases/{folder}",
        "paths.remote_workspace": "/w",
        "paths.local_results": "/r",
    }
    try:
        config = ConfigLoader().parse(config_text(chosen), Path("/etc/config.yaml"))
    except ConfigurationError:
        return
    assert (config.ssh.username, config.app.site) == (user, site)


def test_a_key_that_is_no_setting_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"ssh\.hots"):
        config_text({"ssh.hots": "h"})


@pytest.mark.parametrize(
    "wrong",
    [{"workspace": "relative"}, {"results": "inside"}, {"site": "a b"}, {"host": "a b"}, {"user": "\udcff"}],
)
def test_a_wrong_wish_writes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    if "results" in wrong:
        wrong = {"results": tmp_path / "cases" / "results"}
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigurationError):
        begin(path, wishes(tmp_path, **wrong), force=False)
    assert list(tmp_path.iterdir()) == []


# What is there


def test_a_configuration_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    first = begin(path, wishes(tmp_path), force=False)
    text = path.read_text()
    with pytest.raises(ConfigurationError, match="already"):
        begin(path, wishes(tmp_path, host="other"), force=False)
    again = begin(path, Wishes(), force=False)
    assert not again.written
    assert again.instance == first.instance
    assert path.read_text() == text

    forced = begin(path, wishes(tmp_path, host="other"), force=True)
    assert forced.kept is not None
    assert forced.kept.read_text() == text
    assert forced.instance == first.instance
    assert ConfigLoader().load(path).ssh.host == "other"


def test_of_two_writers_the_first_ones_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    chosen = {
        "ssh.host": "h",
        "paths.local_logdata": "/c",
        "paths.remote_workspace": "/w",
        "paths.local_results": "/r",
    }
    write_config(path, chosen)
    with pytest.raises(ConfigurationError, match="already"):
        write_config(path, {**chosen, "ssh.host": "late.example"})
    assert "late.example" not in path.read_text()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert missing(path, Wishes(host="h"), force=False) == ["logdata", "workspace"]
    with pytest.raises(ConfigurationError, match="--logdata"):
        begin(path, Wishes(host="h"), force=False)
    path.write_text("x")
    assert missing(path, Wishes(), force=False) == []
    assert missing(path, Wishes(), force=True) == ["host", "logdata", "workspace"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        begin(tmp_path / "config.yaml", wishes(tmp_path), force=False)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        begin(tmp_path / "state" / "config.yaml", wishes(tmp_path), force=False)


def test_a_daemon_is_not_disturbed(tmp_path: Path) -> None:
    path = local(tmp_path)
    begin(path, Wishes(), force=False)
    store = lose_store(tmp_path)
    running = LifecycleManager(store)
    running.acquire_lock()
    try:
        with pytest.raises(LockHeld):
            begin(path, Wishes(), force=False, adopt=True)
    finally:
        running.release_lock()
    assert not store.exists()


# Adoption


def test_a_lost_store_is_begun_again_only_where_that_is_said(tmp_path: Path) -> None:
    path = local(tmp_path)
    own = begin(path, Wishes(), force=False).instance
    store = lose_store(tmp_path)
    store.with_name("mqi.sqlite-wal").write_text("left")
    with pytest.raises(StateError, match="identity") as refused:
        begin(path, Wishes(), force=False)
    assert "--adopt" in str(refused.value)
    assert not store.exists()

    begun = begin(path, Wishes(), force=False, adopt=True)
    assert begun.instance == own
    assert store.exists()
    assert [left.read_text() for left in store.parent.glob("*.lost-*")] == ["left"]
    assert any("nobody's yet" in note for note in begun.notes)
    with pytest.raises(StateError, match="nothing to adopt"):
        begin(path, Wishes(), force=False, adopt=True)


def test_an_identity_comes_back_from_a_backup(tmp_path: Path) -> None:
    path = local(tmp_path)
    first = begin(path, Wishes(), force=False)
    backup = tmp_path / "backup.json"
    backup.write_bytes(first.identity_file.read_bytes())
    store = lose_store(tmp_path)
    first.identity_file.unlink()
    with pytest.raises(StateError, match="neither a store nor its identity"):
        begin(path, Wishes(), force=False, adopt=True)

    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / ".owner").write_text(f"{first.instance}\n")
    begun = begin(path, Wishes(), force=False, adopt=True, identity=backup)
    assert begun.instance == first.instance
    assert load_or_create_instance(store).secret.hex() == json.loads(backup.read_text())["secret"]
    assert any("as it should" in note for note in begun.notes)


def test_a_foreign_workspace_is_not_adopted(tmp_path: Path) -> None:
    path = local(tmp_path)
    begin(path, Wishes(), force=False)
    store = lose_store(tmp_path)
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / ".owner").write_text("other1\n")
    with pytest.raises(StateError, match="other1") as refused:
        begin(path, Wishes(), force=False, adopt=True)
    assert "--instance" in str(refused.value)
    assert not store.exists()
    assert (tmp_path / "ws" / ".owner").read_text() == "other1\n"


def test_another_identity_does_not_take_the_place_of_ours(tmp_path: Path) -> None:
    path = local(tmp_path)
    own = begin(path, Wishes(), force=False).instance
    lose_store(tmp_path)
    other = tmp_path / "other"
    other.write_text(json.dumps({"id": "other1", "secret": "00" * 32}))
    with pytest.raises(StateError, match="another one"):
        begin(path, Wishes(), force=False, adopt=True, identity=other)
    assert load_or_create_instance(tmp_path / "state" / "mqi.sqlite").id == own


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"id": "abcdef", "secret": "xyz"}', '{"id": 1, "secret": 2}']
)
def test_an_instance_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = local(tmp_path)
    backup = tmp_path / "backup"
    backup.write_text(text)
    with pytest.raises(StateError, match="no instance file"):
        begin(path, Wishes(), force=False, adopt=True, identity=backup)
    with pytest.raises(StateError, match="cannot be read"):
        begin(path, Wishes(), force=False, adopt=True, identity=tmp_path / "no")
    with pytest.raises(ConfigurationError, match="--adopt"):
        begin(path, Wishes(), force=False, identity=backup)


def test_a_cluster_out_of_reach_hinders_no_adoption(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    known = tmp_path / "no_known_hosts"
    begin(path, wishes(tmp_path, known_hosts=known), force=False)
    lose_store(tmp_path)
    begun = begin(path, Wishes(), force=False, adopt=True)
    assert any("doctor" in note for note in begun.notes)


# The commands


def test_the_commands(tmp_path: Path) -> None:
    path, runner = tmp_path / "config.yaml", CliRunner()
    words = ["--config", str(path), "init", "--host", "h", "--logdata", str(tmp_path / "cases")]
    words += ["--workspace", "/w", "--state", str(tmp_path / "state" / "mqi.sqlite")]
    words += ["--known-hosts", str(tmp_path / "no")]
    first = runner.invoke(app, words, catch_exceptions=False)
    assert first.exit_code == 0
    assert f"mqi-hpc --config {path} doctor" in first.output
    forced = runner.invoke(app, [*words, "--force"], catch_exceptions=False)
    assert "config.yaml.old" in forced.output

    told = runner.invoke(app, ["--config", str(path), "doctor", "--json"], catch_exceptions=False)
    assert told.exit_code == 4
    answer = json.loads(told.output)
    assert {tuple(entry) for entry in answer} == {("check", "status", "found", "cure")}
    assert next(e for e in answer if e["check"] == "host key")["status"] == "failure"

    shown = runner.invoke(app, ["--config", str(path), "doctor", "--no-jobs"], catch_exceptions=False)
    assert shown.exit_code == 4
    assert "failure  host key: " in shown.output
    assert "cure: " in shown.output

    wrong = runner.invoke(app, ["--config", str(tmp_path / "no"), "doctor", "--json"], catch_exceptions=False)
    assert wrong.exit_code == 2
    assert json.loads(wrong.output)[0]["status"] == "failure"


def test_a_person_is_asked_for_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    from mqi_hpc.cli import init as module

    asked: list[str] = []

    def prompt(question: str) -> str:
        asked.append(question)
        return str(tmp_path / "cases") if "cases arrive" in question else "/w"

    monkeypatch.setattr(module.typer, "prompt", prompt)
    monkeypatch.setattr(module, "sys", type("sys", (), {"stdin": Terminal}))
    monkeypatch.setattr(setup, "usual_config", lambda: tmp_path / "usual" / "config.yaml")
    state = str(tmp_path / "state" / "mqi.sqlite")
    done = CliRunner().invoke(app, ["init", "--host", "h", "--state", state], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(asked) == 2
    config = ConfigLoader().load(tmp_path / "usual" / "config.yaml")
    assert config.paths.remote_workspace == "/w"
    assert "\n  mqi-hpc doctor" in done.output
