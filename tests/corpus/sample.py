"""A sample of real text: what a cluster wrote, and what was so, told by another witness than our parsers.

`<version>/<name>.txt` is the output of our poll script, byte for byte; `<name>.json` says what must be read
from it. The facts of the queue and of what has ended come from `scontrol show job`, read here in a way of its
own; who cancelled, and that a task had earlier lives, from what the scenario did.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HOME = Path(__file__).parent
VERSIONS = ("22.05", "24.11", "26.05")


@dataclass(frozen=True, order=True)
class Fact:
    """What is so of one task of ours; `submit` in epoch seconds, `by_uid` -1 where nobody cancelled it."""

    job: int
    task: int
    name: str
    word: str
    reason: str
    submit: float
    node: str
    exit_code: str
    by_uid: int = -1


@dataclass(frozen=True)
class Sample:
    """`task` is -1 where a job is no array. `lives`: rows of earlier lives that accounting must show too, as
    [job, task, word]. `queue` or `accounting` false: that section must be refused."""

    what: str
    nonce: str
    facts: tuple[Fact, ...]
    lives: tuple[tuple[int, int, str], ...] = ()
    queue: bool = True
    accounting: bool = True


def write(version: str, name: str, output: str, sample: Sample) -> None:
    """Keep a sample."""
    folder = HOME / version
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_bytes(output.encode("utf-8", "surrogateescape"))
    rows = [json.dumps(list(asdict(fact).values())) for fact in sorted(sample.facts)]
    rest = {key: value for key, value in asdict(sample).items() if key != "facts"}
    text = json.dumps({**rest, "facts": []})
    text = text.replace('"facts": []', '"facts": [\n' + ",\n".join(rows) + "\n]")
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")


def read(version: str, name: str) -> tuple[str, Sample]:
    """Return a sample's text and what must be read from it."""
    folder = HOME / version
    whole = json.loads((folder / f"{name}.json").read_text("utf-8"))
    whole["facts"] = tuple(Fact(*fact) for fact in whole["facts"])
    whole["lives"] = tuple((job, task, word) for job, task, word in whole["lives"])
    # As an executor hands the bytes on.
    return (folder / f"{name}.txt").read_bytes().decode("utf-8", "replace"), Sample(**whole)


def names() -> list[tuple[str, str]]:
    """Return (version, name) of every sample."""
    return [(v, path.stem) for v in VERSIONS for path in sorted((HOME / v).glob("*.txt"))]


def facts_of(scontrol: str, cancelled_by: dict[int, int]) -> tuple[Fact, ...]:
    """Return the facts in `scontrol show job -o` (SLURM_BITSTR_LEN=0, times in UTC) of jobs of our names."""
    found: list[Fact] = []
    for line in scontrol.split("\n"):
        name = _value(line, "JobName")
        if not name.startswith("mqi-"):
            continue
        job = int(_value(line, "ArrayJobId") or _value(line, "JobId"))
        word = _value(line, "JobState")
        node = _value(line, "NodeList")
        for task in _indices(_value(line, "ArrayTaskId")):
            found.append(
                Fact(
                    job=job,
                    task=task,
                    name=name,
                    word=word,
                    reason=_value(line, "Reason"),
                    submit=datetime.fromisoformat(_value(line, "SubmitTime")).replace(tzinfo=UTC).timestamp(),
                    node="" if node == "(null)" else node,
                    exit_code=_value(line, "ExitCode"),
                    by_uid=cancelled_by.get(job, -1) if word == "CANCELLED" else -1,
                )
            )
    return tuple(sorted(found))


def _value(line: str, key: str) -> str:
    match = re.search(rf"(?:^| ){key}=(\S+)", line)
    return match[1] if match else ""


def _indices(expression: str) -> list[int]:
    if not expression:
        return [-1]
    found: list[int] = []
    for part in expression.partition("%")[0].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found
