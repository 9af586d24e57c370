"""Inputs of the parsers of our own text on the cluster: receipts, submit.sh, status lines, records."""

from __future__ import annotations

import json
import random
from typing import Any

from mqi_hpc.core.models import STAGES
from mqi_hpc.core.observation import MARK, NotParsed, parse_receipts
from mqi_hpc.core.submission import SubmitReport, parse_receipt, parse_submit
from mqi_hpc.records.chain import (
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
from mqi_hpc.records.layout import submission_name
from mqi_hpc.records.manifest import format_manifest, parse_manifest
from mqi_hpc.records.result import (
    BeamRecord,
    ConvertedDose,
    ConvertRecord,
    FileEntry,
    Gpu,
    InterpretRecord,
    Record,
    Run,
    decode_record,
    encode_record,
)
from mqi_hpc.records.status import StatusLine, decode_lines, encode_line
from tests.fuzz.slurm_text import NOISE, Rows, our_name

KEY = "abcdefghij12"
WORDS = (
    "sbatch: error: Batch job submission failed: Invalid qos specification",
    "sbatch: error: QOSMaxGRESPerJob",
    "Welcome",
)


def digest(rng: random.Random) -> str:
    return f"{rng.getrandbits(256):064x}"


class Receipts(Rows):
    """The receipts section of a poll, each line then read as a receipt."""

    name = "receipts"

    def make(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        facts: dict[str, Any] = {}
        for stage in STAGES[: rng.randint(0, 3)]:
            facts[stage] = (our_name(rng), rng.randint(1, 60_000_000), float(rng.randint(10**9, 2 * 10**9)))
        text = "".join(f"{s} {name} {id_} {time:.0f}\n" for s, (name, id_, time) in facts.items())
        if rng.random() < 0.5:
            facts["claimed"] = "interpret"
            text += "claimed interpret\n"
        return facts, text

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        lines = text.split("\n")[:-1]
        kind = rng.randrange(4)
        if kind == 0 or not lines:
            return self.insert(rng, text)
        at = rng.randrange(len(lines))
        if kind == 1:
            lines[at] = lines[at].replace(" ", "", 1)
        elif kind == 2:
            lines.insert(at, lines[at])
        elif kind == 3:
            rng.shuffle(lines)
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> dict[str, Any]:
        found: dict[str, Any] = dict(parse_receipts(text))
        for stage in set(found) & set(STAGES):
            receipt = parse_receipt(found[stage])
            found[stage] = (receipt.name, receipt.id, receipt.time)
        return found


class Submit(Rows):
    """What submit.sh says: cut short it says less, never something else."""

    name, nonce = "submit", "f00dfeed"

    def make(self, rng: random.Random) -> tuple[SubmitReport, str]:
        lines, receipts = [], {}
        failed = None
        report: dict[str, Any] = {"code": 0}
        for stage in STAGES[rng.randint(0, 2) :]:
            if rng.random() < 0.15:
                words = rng.sample(WORDS, rng.randint(0, 3))
                lines += [f"SBATCH {stage} {word}" for word in words]
                failed = (stage, rng.choice((1, 124, 255)), tuple(words))
                lines.append(f"FAILED {stage} {failed[1]}")
                report["code"] = 75
                break
            receipt = (our_name(rng), rng.randint(1, 60_000_000), rng.randint(10**9, 2 * 10**9))
            receipts[stage] = receipt
            lines.append(f"RECEIPT {stage} {receipt[0]} {receipt[1]} {receipt[2]}")
            if rng.random() < 0.1:
                lines.append(f"HEAD {receipt[1]}|{receipt[0]}|PENDING|None")
                report |= {"code": 77, "head": f"{receipt[1]}|{receipt[0]}|PENDING|None"}
                break
        lines.append(f"DONE {report['code']}")
        end = rng.choice(("\n", "\r\n"))
        text = "".join(
            f"{MARK}{self.nonce} {line}{end}" + (f"{rng.choice(NOISE)}\n" if rng.random() < 0.2 else "")
            for line in lines
        )
        facts = {**report, "receipts": receipts, "failed": failed}
        return facts, text  # type: ignore[return-value]

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        kind = rng.randrange(4)
        if kind == 0:
            return text[: rng.randint(0, len(text))]
        if kind == 1:
            return text[rng.randint(0, len(text)) :]
        if kind == 2:
            other = text.replace(self.nonce, "0ther000")
            at = rng.choice([n + 1 for n, letter in enumerate(text) if letter == "\n"])
            return text[:at] + other + text[at:]
        return text.replace(self.nonce, rng.choice(("f00dfeee", "f00dfee", "")), 1)

    def read(self, text: str) -> Any:
        found = parse_submit(text, self.nonce)
        failed = found.failed and (found.failed.stage, found.failed.exit_code, found.failed.lines)
        receipts = {s: (r.name, r.id, int(r.time)) for s, r in found.receipts.items()}
        return {"code": found.code, "head": found.head, "failed": failed, "receipts": receipts}

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        facts = {"head": None, **facts}
        if not damaged:
            return bool(found == facts)
        same = all(found[key] in (None, facts[key]) for key in ("code", "head"))
        lost = found["failed"] is None or (
            found["failed"][:2] == facts["failed"][:2] and set(found["failed"][2]) <= set(facts["failed"][2])
        )
        return same and lost and found["receipts"].items() <= facts["receipts"].items()


class Status(Rows):
    """Status lines. A last line without its end is not counted; else a damaged text is refused."""

    name = "status"

    def make(self, rng: random.Random) -> tuple[list[StatusLine], str]:
        lines = []
        for _ in range(rng.randint(0, 4)):
            event = rng.choice(("started", "progress", "exited"))
            lines.append(
                StatusLine(
                    stage=rng.choice(STAGES),
                    index=rng.randint(0, 40),
                    event=event,
                    time=round(rng.uniform(1e9, 2e9), 3),
                    slurm_id=rng.randint(1, 60_000_000),
                    restart=rng.randint(0, 3),
                    node=rng.choice(("g1", "node-07")),
                    text=rng.choice(("", "layer 3 of 20", 'a "b" \\ }', "ünï ☃\n")),
                    exit_code=rng.choice((0, 1, 78, 137)) if event == "exited" else None,
                )
            )
        return lines, "".join(map(encode_line, lines))

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        kind = rng.randrange(3)
        if kind == 0 or not facts:
            return text[: rng.randint(0, len(text))]
        if kind == 1:
            return self.insert(rng, text)
        lines = text.split("\n")[:-1]
        at = rng.randrange(len(lines))
        lines[at] = hurt_json(rng, lines[at])
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> list[StatusLine]:
        return decode_lines(text)

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        return bool(found == facts or (damaged and found == facts[: len(found)]))


def hurt_json(rng: random.Random, text: str) -> str:
    """Return JSON of an object hurt so that it must be refused: cut, a key too few, too many or twice, a
    value of another kind."""
    kind = rng.randrange(6)
    if kind == 0:
        return text[: rng.randint(0, len(text.rstrip()) - 1)]
    if kind == 1:
        return text + rng.choice(("}", "x", "{}", ","))
    whole = json.loads(text)
    place = whole
    # Some way down.
    while nested := [v for v in place.values() if isinstance(v, dict) and v and all(map(_word, v))]:
        if rng.random() < 0.5:
            break
        place = rng.choice(nested)
    key = rng.choice(sorted(k for k in place if _word(k)))
    if kind == 2:
        del place[key]
    elif kind == 3:
        place["surplus"] = 1
    elif kind == 4:
        place[key] = {"no": 1} if not isinstance(place[key], dict) else 7
    else:
        return "{" + json.dumps(key) + ":0," + json.dumps(place)[1:] if place is whole else text[1:]
    return json.dumps(whole)


def _word(key: str) -> bool:
    # Keys that are values themselves (beam numbers, factors, missing beams) may come and go.
    return key.replace("_", "").isalpha() and key not in (
        "missing",
        "beams",
        "dose1_factors",
        "input_digests",
    )


class Records(Rows):
    """result.json of each stage."""

    name, share = "result", 2

    def make(self, rng: random.Random) -> tuple[Record, str]:
        run = Run(
            key=KEY,
            job=f"j{rng.randint(1, 99):02d}",
            array_id=rng.randint(1, 60_000_000),
            slurm_id=rng.randint(1, 60_000_000),
            restart=rng.randint(0, 2),
            node="g1",
            start=1.5e9 + rng.random(),
            end=1.6e9,
            exit_code=rng.choice((0, 1)),
        )
        files = tuple(FileEntry(f"f{n}/dose.raw", rng.randint(0, 10**9), digest(rng)) for n in range(2))
        record: Record
        kind = rng.randrange(3)
        if kind == 0:
            record = InterpretRecord(run, {"1": digest(rng)}, {"1": "beam_1"}, files, ("a note",))
        elif kind == 1:
            grid = Grid((40, 30, rng.randint(1, 300)), (4.0, 5.0, 1.0), (-80.0, rng.uniform(-99, 99), 0.0))
            record = BeamRecord(run, rng.randint(0, 9), rng.randint(1, 99), digest(rng), digest(rng),
                                rng.getrandbits(31), "moqui", "1.0", Gpu("0", "GPU-1", "H100"), grid, 0.0,
                                rng.uniform(1, 3), rng.uniform(1e3, 1e4), "fine", files)  # fmt: skip
        else:
            dose = ConvertedDose(0, 1, files[0].path, "j01", digest(rng), "1.2.3", 2.5,
                                 rng.choice((None, 201.5)))  # fmt: skip
            record = ConvertRecord(run, (dose,), {"1": "failed"}, files)
        return record, encode_record(record)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        return hurt_json(rng, text)

    def read(self, text: str) -> Record:
        return decode_record(text)


class Chains(Rows):
    """chain.json."""

    name, share = "chain", 2

    def make(self, rng: random.Random) -> tuple[Chain, str]:
        count, job, stages = rng.randint(1, 3), f"j{rng.randint(2, 9):02d}", STAGES[rng.randint(0, 2) :]
        own = "interpret" in stages
        beams = tuple(
            ChainBeam(n, n + 1, f"G{n}", f"G{n}", (70.5, 90.0), digest(rng), rng.getrandbits(31),
                      None if "beams" in stages else "j01")
            for n in range(count)
        )  # fmt: skip
        submissions = tuple(
            ChainSubmission(s, submission_name("i1", KEY, job, s), digest(rng),
                            tuple(range(count)) if s == "beams" else (0,),
                            "afterok:1" if s == "beams" else None)
            for s in stages
        )  # fmt: skip
        chain = Chain(
            site="here",
            instance="i1",
            key=KEY,
            job=job,
            plan_uid="1.2.3",
            beams=beams,
            submissions=submissions,
            interpreted=Interpreted(job if own else "j01", None if own else digest(rng)),
            stages_digest=digest(rng),
            audit_head=digest(rng),
            settings=Settings(
                Calibration("G1", 0.0, 1.5, 1.0, 1.0, 0.06, {"0": 1.0}),
                Grid((40, 30, 300), (4.0, 5.0, 1.0), (-80.0, -75.0, -280.0)),
                "rows", ("/opt/moqui",), "moqui", True, "PHYSICAL",
            ),
        )  # fmt: skip
        return chain, encode_chain(chain)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        return hurt_json(rng, text)

    def read(self, text: str) -> Chain:
        return decode_chain(text)


class Manifests(Rows):
    """MANIFEST.sha256; between two lines it can be cut without a trace, so it is not cut there."""

    name = "manifest"

    def make(self, rng: random.Random) -> tuple[dict[str, str], str]:
        facts = {
            f"beam_{n}/{rng.choice(('a b', 'ü', '01'))}.ptn": digest(rng) for n in range(rng.randint(1, 4))
        }
        return facts, format_manifest(facts)

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        lines = text.split("\n")[:-1]
        at, kind = rng.randrange(len(lines)), rng.randrange(6)
        if kind == 0:
            end = sum(len(line) + 1 for line in lines[: at + 1])
            return text[: rng.randint(end - len(lines[at]), end - 1)]
        if kind == 1:
            rng.shuffle(lines)
        elif kind == 2:
            lines.insert(at, lines[at])
        elif kind == 3:
            lines[at] = lines[at].replace("  ", rng.choice(("", " ", "\t")))
        elif kind == 4:
            lines[at] = lines[at][: rng.randint(0, 63)] + lines[at][64:]
        else:
            lines[at] = lines[at].replace("beam_", rng.choice(("/", "../", "./", "a//", "\\")))
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> dict[str, str]:
        return parse_manifest(text)


def refuse_none(value: Any) -> Any:
    """Return a value; raises NotParsed where a parser said None for a refusal."""
    if value is None:
        raise NotParsed("none")
    return value
