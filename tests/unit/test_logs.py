from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.monitoring.logs import configure_logging


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    for handler in list(logging.getLogger("mqi_hpc").handlers):
        logging.getLogger("mqi_hpc").removeHandler(handler)
        handler.close()
    structlog.reset_defaults()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_a_line_of_json_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mqi.log"
    configure_logging(path)
    log = structlog.get_logger("mqi_hpc.case")
    log.info("task", case_id="abcdefghijkl", status="running", text="line\nbreak ü")
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("unexpected", path=Path("/x"))
    first, second = lines(path)
    assert (first["event"], first["case_id"], first["level"]) == ("task", "abcdefghijkl", "info")
    assert str(first["timestamp"]).endswith("Z")
    assert first["text"] == "line\nbreak ü"
    assert "ValueError: wrong" in str(second["exception"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "mqi.log"
    configure_logging(path)
    log = structlog.get_logger("mqi_hpc.case")
    log.info("one")
    path.rename(tmp_path / "mqi.log.1")
    log.info("two")
    assert [line["event"] for line in lines(path)] == ["two"]


def test_without_a_file_warnings_alone_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(None)
    log = structlog.get_logger("mqi_hpc.case")
    log.info("quiet")
    log.warning("loud")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(line)["event"] for line in captured.err.splitlines()] == ["loud"]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"app\.log_file .*the log cannot be written"):
        configure_logging(tmp_path / "file" / "mqi.log")
