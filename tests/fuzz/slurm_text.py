"""Inputs of the parsers of Slurm's own text: squeue, sacct, array expressions, states, sinfo."""

from __future__ import annotations

import random
from typing import Any

from mqi_hpc.core.gpu_inventory import parse_nodes
from mqi_hpc.core.observation import (
    FIELD,
    MARK,
    NotParsed,
    Row,
    expand_array,
    newest,
    parse_sacct,
    parse_squeue,
)
from mqi_hpc.core.slurm_facts import parse_partitions, seconds
from mqi_hpc.core.slurm_states import LIVE, TERMINAL, read_word

LIVE_WORDS, ENDS = sorted(LIVE), sorted(TERMINAL)
REASONS = ("None", "Priority", "Resources", "Dependency", "JobHeldUser", "JobArrayTaskLimit", "(null)", "",
           "launch failed requeued held", "ReqNodeNotAvail, UnavailableNodes:g[1-2]")  # fmt: skip
NODES = ("", "", "(null)", "g1", "g[1-2]", "node-07.site.org")
TRES = ("", "billing=1,cpu=1,gres/gpu=1,mem=1G,node=1", "cpu=8,gres/gpu:a100=2,mem=62.50G,node=1")
FOREIGN = ("train", "a b", "tab\there", "ünï ☃", "my-mqi-job", "$(id)", "x" * 40, "7", "-")
TORN = ("line\nend", "two\n\nlines", "a\nb c\nd")
NOISE = ("hello", "Last login: today", "bash: warning: setlocale", "x", "WARNING quota")


def our_name(rng: random.Random) -> str:
    """Return a name as our submissions bear it."""
    key = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=12))
    stage = rng.choice(("interpret", "beams", "convert"))
    return f"mqi-{rng.choice(('i1', 'clinic', 'a2b3'))}-{key}-j{rng.randint(1, 99):02d}-{stage}"


def array_text(indices: list[int]) -> str:
    """Return ascending indices as Slurm prints them: ranges, `:step` for more than five in step, lists."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if len(indices) > 5 and step > 1 and indices == list(range(indices[0], indices[-1] + 1, step)):
        return f"{indices[0]}-{indices[-1]}:{step}"
    parts, first = [], indices[0]
    for at, index in enumerate(indices):
        if at + 1 == len(indices) or indices[at + 1] != index + 1:
            parts.append(f"{first}-{index}" if index > first else f"{first}")
            first = indices[at + 1] if at + 1 < len(indices) else 0
    return ",".join(parts)


def some_indices(rng: random.Random) -> list[int]:
    """Return ascending indices: a run, a run in steps, or any."""
    first, count, kind = rng.randint(0, 30), rng.randint(1, 9), rng.random()
    if kind < 0.4:
        return list(range(first, first + count))
    if kind < 0.6:
        step = rng.randint(2, 7)
        return list(range(first, first + count * step, step))
    return sorted(rng.sample(range(60), count))


def word_text(word: str, uid: int | None, rng: random.Random) -> str:
    """Return a state as sacct prints it."""
    if uid is not None:
        return f"{word} by {uid}"
    return f"{word}+" if rng.random() < 0.1 else word


class Rows:
    """What squeue's and sacct's tables have in common: facts are a set of rows."""

    share = 1

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        return bool(found == facts)

    def insert(self, rng: random.Random, text: str) -> str:
        """Return the text with a line of noise in it, anywhere."""
        at = rng.randint(0, len(text))
        return f"{text[:at]}{rng.choice(NOISE)}\n{text[at:]}"


class Squeue(Rows):
    """squeue -h -t all in our format; rows of other jobs, whose names may be anything."""

    name, share = "squeue", 5

    def make(self, rng: random.Random) -> tuple[set[Row], str]:
        rows: list[Row] = []
        blocks: list[str] = []
        job = rng.randint(1, 60_000_000)
        for _ in range(rng.randint(0, 4)):
            job += rng.randint(1, 9)
            submit = float(rng.randint(1_500_000_000, 2_000_000_000))
            if rng.random() < 0.3:
                torn = rng.random() < 0.5
                fields = [str(job), "N/A", rng.choice(LIVE_WORDS), "None", str(int(submit)), "",
                          rng.choice(TORN if torn else FOREIGN)]  # fmt: skip
                blocks.append(FIELD.join(fields) + "\n")
                continue
            name, reason, node = our_name(rng), rng.choice(REASONS), rng.choice(NODES)
            shown = "" if node == "(null)" else node
            word = rng.choice(LIVE_WORDS + ENDS)
            kind = rng.random()
            indices: list[int | None] = [None] if kind < 0.4 else [*some_indices(rng)[:3]]
            together = kind > 0.9 and len(indices) > 1
            for index in indices:
                rows.append(Row(job=job, task=index, name=name, word=word, collapsed=together, reason=reason,
                                submit=submit, node=shown))  # fmt: skip
            if together:
                text = array_text([i for i in indices if i is not None])
                tasks = [rng.choice((f"{text}", f"[{text}]", f"{text}%2"))]
                if tasks[0].isdecimal():
                    tasks = [f"[{text}]"]
            else:
                tasks = ["N/A" if index is None else str(index) for index in indices]
            for task in tasks:
                blocks.append(FIELD.join((str(job), task, word, reason, str(int(submit)), node, name)) + "\n")
        return set(rows), "".join(blocks)

    def damage(self, rng: random.Random, facts: set[Row], text: str) -> str:
        kind = rng.randrange(8)
        lines = text.split("\n")[:-1]
        ours = [n for n, line in enumerate(lines) if FIELD + "mqi-" in line]
        if kind == 0 or not ours:
            return self.insert(rng, text)
        at = rng.choice(ours)
        fields = lines[at].split(FIELD)
        if kind == 1:
            # The end is missing: the mark after it may still be there, of a writer that was killed.
            end = sum(len(line) + 1 for line in lines[: at + 1])
            return text[: rng.randint(end - len(lines[at]), end - 1)]
        if kind == 2:
            del fields[rng.randrange(6)]
        elif kind == 3:
            fields[4] = rng.choice(("2026-11-24T15:30:00", "15:30:00", "now", "-5", "1.5e9"))
        elif kind == 4:
            fields[1] = rng.choice(
                ("[1-3,5-...", "1-3,5-...", "[1-", "3-1", "1,,2", "1-9:0", "x", "[1-3]]", "1 2")
            )
        elif kind == 5:
            fields[0] = rng.choice(("", "x", f"{fields[0]}_1", f"{fields[0]}+0", " 12", "12 ", "-1"))
        elif kind == 6 and at + 1 < len(lines):
            # Two lines run into one.
            fields = [*fields[:-1], fields[-1] + lines.pop(at + 1)]
        elif kind == 7:
            lines[at] = lines[at].replace(FIELD, rng.choice((" ", "|", "")), 1)
            return "".join(f"{line}\n" for line in lines)
        lines[at] = FIELD.join(fields)
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> set[Row]:
        return set(parse_squeue(text))


class Sacct(Rows):
    """sacct -n -P -X -D in our format: lives of a task, collapsed rows, who cancelled."""

    name, share = "sacct", 5

    def make(self, rng: random.Random) -> tuple[tuple[set[Row], dict[Any, Row]], str]:
        rows: list[Row] = []
        lines: list[str] = []
        last: dict[Any, Row] = {}
        job = rng.randint(1, 60_000_000)
        for _ in range(rng.randint(0, 3)):
            job += rng.randint(1, 9)
            submit = rng.randint(1_500_000_000, 2_000_000_000)
            if rng.random() < 0.15:
                lines.append(
                    FIELD.join((str(job), rng.choice(FOREIGN), "RUNNING", "0:0", "x", "y", "z", "", ""))
                )
                continue
            name = our_name(rng)
            array = rng.random() < 0.6
            for index in some_indices(rng)[:3] if array else [None]:
                # Each requeue is a new row, submitted later.
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    row = self._row(rng, job, index, name, submit)
                    submit += rng.randint(1, 500)
                    rows.append(row)
                    lines.append(self._line(rng, row, f"{job}" if index is None else f"{job}_{index}"))
                last[(job, index)] = row
            if array and rng.random() < 0.4:
                rest = sorted({i + 100 for i in some_indices(rng)})
                row = self._row(rng, job, None, name, submit)
                tasks = array_text(rest) + rng.choice(("", "", "%2"))
                lines.append(self._line(rng, row, f"{job}_[{tasks}]"))
                for index in rest:
                    fields = {f: getattr(row, f) for f in Row.__slots__}
                    one = Row(**{**fields, "task": index, "collapsed": len(rest) > 1})
                    rows.append(one)
                    last[(job, index)] = one
        rng.shuffle(lines)
        return (set(rows), last), "".join(f"{line}\n" for line in lines)

    def _row(self, rng: random.Random, job: int, index: int | None, name: str, submit: int) -> Row:
        word = rng.choice([*ENDS, "RUNNING", "PENDING", "REQUEUED", "REVOKED", "RESIZING"])
        began = submit + rng.randint(0, 900) if rng.random() < 0.8 else None
        return Row(
            job=job,
            task=index,
            name=name,
            word=word,
            by_uid=rng.choice((None, 0, 1000, 4_294_967_294)) if word == "CANCELLED" else None,
            exit_code=rng.choice(("0:0", "1:0", "0:9", "9:0", "255:0", "0:15")),
            submit=float(submit),
            start=None if began is None else float(began),
            end=float(began + 60) if began is not None and word in TERMINAL else None,
            node=rng.choice(("", "g1", "g[1-2]")),
            tres=rng.choice(TRES),
        )

    def _line(self, rng: random.Random, row: Row, job_id: str) -> str:
        times = [
            f"{t:.0f}" if t is not None else rng.choice(("Unknown", "None")) for t in (row.start, row.end)
        ]
        node = row.node or rng.choice(("", "None assigned", "(null)"))
        return FIELD.join((job_id, row.name, word_text(row.word, row.by_uid, rng), row.exit_code,
                           f"{row.submit:.0f}", *times, node, row.tres))  # fmt: skip

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        kind = rng.randrange(8)
        lines = text.split("\n")[:-1]
        ours = [n for n, line in enumerate(lines) if FIELD + "mqi-" in line]
        if kind == 0 or not ours:
            return self.insert(rng, text)
        at = rng.choice(ours)
        fields = lines[at].split(FIELD)
        if kind == 1:
            end = sum(len(line) + 1 for line in lines[: at + 1])
            return text[: rng.randint(end - len(lines[at]), end - 1)]
        if kind == 2:
            del fields[rng.randrange(9)]
        elif kind == 3:
            fields[4] = rng.choice(("2026-11-24T15:30:00", "15:30:00", "now", "-5", "1.5e9"))
        elif kind == 4:
            job = fields[0].partition("_")[0]
            rest = ("_[1-3,5-...", "_[1-3,...]", "_[", "_", "+0", ".batch", "_[3-1]", "_1_2", "x")
            fields[0] = rng.choice((*(job + end for end in rest), "", "x"))
        elif kind == 5 and at + 1 < len(lines):
            fields = [*fields[:-1], fields[-1] + lines.pop(at + 1)]
        elif kind == 6:
            lines[at] = lines[at].replace(FIELD, rng.choice((" ", "|", "")), 1)
            return "".join(f"{line}\n" for line in lines)
        elif kind == 7:
            fields.insert(rng.randrange(9), rng.choice(("", "x", MARK)))
        lines[at] = FIELD.join(fields)
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> tuple[set[Row], dict[Any, Row]]:
        rows = parse_sacct(text)
        tasks: dict[Any, list[Row]] = {}
        for row in rows:
            tasks.setdefault((row.job, row.task), []).append(row)
        last = {task: found for task, lives in tasks.items() if (found := newest(lives))}
        return set(rows), last


class Arrays(Rows):
    """Array expressions as squeue and sacct print them."""

    name = "array"

    def make(self, rng: random.Random) -> tuple[tuple[int, ...], str]:
        indices = some_indices(rng)
        return tuple(indices), array_text(indices) + rng.choice(("", "%1", "%20"))

    def damage(self, rng: random.Random, facts: tuple[int, ...], text: str) -> str:
        kind = rng.randrange(4)
        if kind == 0:
            # What Slurm does with SLURM_BITSTR_LEN not 0.
            return text[: rng.randint(0, len(text) - 1)] + "..."
        if kind == 1:
            at = rng.randint(0, len(text))
            return text[:at] + rng.choice("[]_ x.;\n٣²") + text[at:]
        return (
            rng.choice(("-", ",", ":", "%")) + text if kind == 2 else text + rng.choice((",", "-", ":", "%"))
        )

    def read(self, text: str) -> tuple[int, ...]:
        return expand_array(text)


class Words(Rows):
    """States as squeue and sacct print them; damaged ones are words that mean nothing to us."""

    name = "state"

    def make(self, rng: random.Random) -> tuple[tuple[str, int | None], str]:
        word = rng.choice(LIVE_WORDS + ENDS)
        uid = rng.choice((None, 0, 1000)) if word == "CANCELLED" else None
        return (word, uid), word_text(word, uid, rng)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        at = rng.randint(1, len(facts[0]) - 1)
        return text[:at] + rng.choice(("", "x", " ", "\n", "Q", "٣", "+")) + text[at + rng.randint(0, 2) :]

    def read(self, text: str) -> tuple[str, int | None]:
        return read_word(text)

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        return bool(found == facts or (damaged and found[0] not in TERMINAL | set(LIVE)))


class Times(Rows):
    """Time limits as Slurm prints them."""

    name = "time"

    def make(self, rng: random.Random) -> tuple[float, str]:
        total = rng.choice((rng.randint(0, 3599), rng.randint(3600, 86399), rng.randint(86400, 9_999_999)))
        days, rest = divmod(total, 86400)
        clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
        if rng.random() < 0.05:
            return float("inf"), rng.choice(("infinite", "UNLIMITED"))
        if not days and rest < 3600:
            return total, f"{rest // 60}:{rest % 60:02d}"
        return total, f"{days}-{clock}" if days else clock

    def damage(self, rng: random.Random, facts: float, text: str) -> str:
        at = rng.randint(0, len(text))
        return text[:at] + rng.choice(("x", "::", ".", "+", "\x1f")) + text[at:]

    def read(self, text: str) -> float:
        found = seconds(text)
        if found is None:
            raise NotParsed(text)
        return found


class Partitions(Rows):
    """sinfo's partitions, as doctor asks for them; a line that is none is passed over."""

    name = "partitions"

    def make(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        facts: dict[str, Any] = {}
        lines = []
        for name in rng.sample(("gpu", "low", "cpu", "debug-1"), rng.randint(1, 3)):
            default = rng.random() < 0.4
            limit = rng.choice(("infinite", "1-00:00:00", "30:00"))
            groups = []
            for _ in range(rng.randint(1, 3)):
                group = (rng.choice(("gpu:4", "(null)", "gpu:a100:2(S:0-1)")),
                         rng.choice(("idle", "mixed", "down*", "drained")), rng.randint(1, 99))  # fmt: skip
                groups.append(group)
                fields = (name + "*" * default, "up", limit, group[0], str(group[2]), group[1])
                lines.append(FIELD.join(fields))
            facts[name] = (default, limit, sorted(groups))
        return facts, "".join(f"{line}\n" for line in lines)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        lines = text.split("\n")
        lines.insert(
            rng.randrange(len(lines)), rng.choice((*NOISE, FIELD * 3, FIELD * 7, "sinfo: error: no"))
        )
        return "\n".join(lines)

    def read(self, text: str) -> dict[str, Any]:
        return {
            name: (p.default, p.limit, sorted((g.gres, g.state, g.nodes) for g in p.groups))
            for name, p in parse_partitions(text).items()
        }


class Gpus(Rows):
    """sinfo's nodes with their GPUs and how many are taken."""

    name = "gpus"

    def make(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        facts: dict[str, Any] = {}
        lines = []
        for number in range(rng.randint(0, 4)):
            node, total, kind = f"g{number}", rng.randint(1, 8), rng.choice(("", "a100", "fake.1"))
            used = rng.randint(0, total)
            state = rng.choice(("idle", "mixed", "down*", "allocated+drain", "idle~"))
            typed = f"gpu:{kind}:" if kind else "gpu:"
            gres = f"{typed}{total}{rng.choice(('', '(S:0-1)', '(S:0)'))}"
            taken = f"{typed}{used}(IDX:{'0-' + str(used - 1) if used else 'N/A'})"
            if not kind and rng.random() < 0.5:
                taken = f"gpu:(null):{used}(IDX:0,2-3)"
            extra = rng.choice(("", ",license:3", ",tape:lto:1"))
            parts = sorted(rng.sample(("gpu", "low", "debug"), rng.randint(1, 2)))
            facts[node] = (total, used, state, tuple(parts))
            for part in parts:
                lines.append("".join(f + FIELD for f in (node, part, state, gres + extra, taken)))
        rng.shuffle(lines)
        return facts, "".join(f"{line}\n" for line in lines)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        lines = text.split("\n")[:-1]
        if not lines or rng.random() < 0.3:
            return self.insert(rng, text)
        at = rng.randrange(len(lines))
        fields = lines[at].split(FIELD)
        kind = rng.randrange(4)
        if kind == 0:
            del fields[rng.randrange(6)]
        elif kind == 1:
            fields[3] = rng.choice(
                ("gpu:", "gpu", "gpu:a:b:3", "gpu:x", "gpu:2(S:0", "gpu:2)", ":2", "gpu:-1")
            )
        elif kind == 2:
            fields[0] = rng.choice(("", "g[1-2]", "g 1", "-"))
        else:
            return "".join(f"{line}\n" for line in lines)[: -rng.randint(2, len(lines[-1]))]
        lines[at] = FIELD.join(fields)
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> dict[str, Any]:
        return {n.node: (n.total, n.used, n.state, n.partitions) for n in parse_nodes(text)}
