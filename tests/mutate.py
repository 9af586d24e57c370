"""./dev mutate: changes the rules one at a time and asks the unit tests whether they notice.

    python -m tests.mutate [MODULE...]

MODULE is one of the names in MODULES (all by default). Each is changed in a copy under .dev/mutation, by
mutmut, without any exclusion. Prints how many changes were noticed (killed) and the text of each that was not
(survived); docs/mutation.md judges those. Exit code 1 below LEAST percent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST = 95.0
MODULES = {
    "verdicts": ["test_verdict_words", "test_verdicts"],
    "readings": ["test_verdict_words", "test_verdicts"],
    "chain_plan": ["test_chain_plan"],
    "resubmit": ["test_resubmit_examples", "test_resubmit"],
    "retry_causes": ["test_retries"],
    "retry_plan": ["test_retries"],
}
# mutmut 3 changes what stands in functions; a table of rules must be in one to be changed.
_SETTINGS = """
[tool.mutmut]
source_paths = ["mqi_hpc"]
only_mutate = ["mqi_hpc/core/{module}.py"]
also_copy = ["tests", "job_templates", "config"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-q"]
pytest_add_cli_args_test_selection = [{tests}]
use_git_change_detection = false

[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
markers = ["cluster: needs the Slurm container", "slow: minutes; runs with --all"]
"""


def prepare(module: str) -> Path:
    """Return a folder with a copy of the tree, set up to change one module."""
    place = ROOT / ".dev" / "mutation" / module
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in ("mqi_hpc", "tests", "job_templates", "config"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    tests = ", ".join(f'"tests/unit/{name}.py"' for name in MODULES[module])
    (place / "pyproject.toml").write_text(_SETTINGS.format(module=module, tests=tests), "utf-8")
    return place


def mutmut(place: Path, *words: str) -> str:
    """Return what a command of mutmut says, run in `place`."""
    # It puts its copy first in the path itself; a path from outside would bring the original in again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"mutmut {' '.join(words)} failed in {place}:\n{done.stdout[-4000:]}")
    return done.stdout


def run(module: str) -> tuple[Counter[str], list[str]]:
    """Return how many changes came to which end, and the text of those that nothing noticed."""
    place = prepare(module)
    mutmut(place, "run", "--max-children", str(os.cpu_count() or 1))
    ends: Counter[str] = Counter()
    survivors = []
    for line in mutmut(place, "results", "--all", "true").splitlines():
        name, found, end = line.strip().rpartition(": ")
        if not found:
            continue
        ends[end] += 1
        if end not in ("killed", "timeout"):
            survivors.append(f"{end}: {mutmut(place, 'show', name)}")
    return ends, survivors


def main() -> int:
    """Change the modules that the command line names."""
    asked = argparse.ArgumentParser(prog="./dev mutate", description="Mutation testing of the rules.")
    asked.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}")
    wanted = asked.parse_args().modules or list(MODULES)
    if strange := set(wanted) - set(MODULES):
        asked.error(f"no such module: {', '.join(sorted(strange))}; there are {', '.join(MODULES)}")
    total: Counter[str] = Counter()
    for module in wanted:
        ends, survivors = run(module)
        total += ends
        print(f"{module}: {_said(ends)}", flush=True)
        for survivor in survivors:
            print(survivor, flush=True)
    print(f"all: {_said(total)}")
    return 0 if _share(total) >= LEAST else 1


def _share(ends: Counter[str]) -> float:
    # A change that runs for ever was noticed too.
    return 100 * (ends["killed"] + ends["timeout"]) / max(1, ends.total())


def _said(ends: Counter[str]) -> str:
    counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    return f"{ends.total()} changes, {counts}: {_share(ends):.1f} % noticed"


if __name__ == "__main__":
    sys.exit(main())
