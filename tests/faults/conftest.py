"""The tier of real faults: each test is a scenario, each scenario a line of the table that ends the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scene import GRID, Dose, Scene
from tests.support.cli import mqi
from tests.support.cluster import Cluster, ClusterError
from tests.support.local_chain import local_chain

_COLUMNS = ("scenario", "Slurm", "submissions", "results", "polls", "seconds")


@pytest.fixture(scope="session")
def doses(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Dose]:
    """The dose of each beam of a sample case, computed here, without Slurm and without any fault."""
    home = tmp_path_factory.mktemp("doses")
    made = mqi(None, "sample-case", str(home / "P"), "--beams", "3", "--layers", "2")
    assert made.returncode == 0, made.stderr
    found = local_chain(home / "P", home / "chain", moqui={"grid": GRID}).run_all()
    return {number: Dose.of(path) for number, path in found.items()}


@pytest.fixture(scope="session")
def version(cluster: Cluster) -> str:
    return cluster.root("sinfo -V").stdout.split()[-1]


@pytest.fixture
def scene(
    cluster: Cluster,
    tmp_path: Path,
    doses: Mapping[int, Dose],
    version: str,
    record_property: Any,
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    title = (request.function.__doc__ or request.node.name).strip().rstrip(".")
    parameter = getattr(request.node, "callspec", None)
    title += f": {parameter.id}" if parameter is not None else ""
    record_property("fault", {"scenario": title, "Slurm": version})
    made = Scene(cluster, tmp_path, doses, lambda line: record_property("fault", line))
    yield made
    spoilt = made.spoilt
    try:
        made.close()
    except ClusterError:
        spoilt = True
    if spoilt:
        # What cannot be repaired is replaced: the next scenario is not to suffer for this one.
        cluster.stop()
        for name in ("id_ed25519", "id_ed25519.pub"):
            (cluster.home / name).unlink()
        cluster.start()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of all scenarios of this run, whichever process they ran in."""
    lines = []
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            line: dict[str, Any] = {}
            for name, value in getattr(report, "user_properties", []):
                if name == "fault":
                    line |= value
            if line and (report.when == "call" or outcome != "passed"):
                line |= (
                    {} if outcome == "passed" else {"results": f"{outcome.upper()} {line.get('results', '')}"}
                )
                lines.append(line)
    if not lines:
        return
    rows = [list(_COLUMNS), *([str(line.get(name, "")) for name in _COLUMNS] for line in lines)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
    terminalreporter.section("real faults")
    for row in rows:
        with contextlib.suppress(OSError):
            terminalreporter.write_line(
                " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            )
    terminalreporter.write_line(f"{len(lines)} scenarios")
