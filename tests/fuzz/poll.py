"""Inputs of the whole poll: framed sections, of which each is the same or says nothing."""

from __future__ import annotations

import random
from typing import Any

from mqi_hpc.core.observation import MARK
from mqi_hpc.core.readings import Accounting
from mqi_hpc.domain.evidence import read_evidence
from tests.fuzz.own_text import Receipts, Records, Status
from tests.fuzz.slurm_text import Rows, Sacct, Squeue

NONCE = "f00dfeed"
REF = "job"


def framed(name: str, text: str, code: int = 0, nonce: str = NONCE) -> str:
    """Return what the poll script writes for a section."""
    return f"{MARK}{nonce} BEGIN {name}\n{text}\n{MARK}{nonce} END {name} {code}\n"


class Poll(Rows):
    """One poll of a job: queue, accounting, receipts, status, a record with its files, free space."""

    name, share = "poll", 6

    def make(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        facts, sections = self._sections(rng)
        return facts, "".join(framed(name, text, code) for name, text, code in sections)

    def _sections(self, rng: random.Random) -> tuple[dict[str, Any], list[tuple[str, str, int]]]:
        queue, queue_text = Squeue().make(rng)
        (accounted, _), accounted_text = Sacct().make(rng)
        receipts, receipts_text = Receipts().make(rng)
        lines, status_text = Status().make(rng)
        _, record_text = Records().make(rng)
        files = {f"f{n}/a b": rng.randint(0, 10**9) for n in range(rng.randint(0, 3))}
        free = rng.randint(0, 10**12)
        facts = {
            "queue": queue,
            "accounted": accounted,
            "receipts": {
                s: r if s == "claimed" else f"{r[0]} {r[1]} {r[2]:.0f}" for s, r in receipts.items()
            },
            "status": {(line.stage, line.index): line for line in lines},
            "record": record_text,
            "listing": files,
            "space": free * 1024,
        }
        space = f"Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/a b 9 9 {free} 5% /home\n"
        return facts, [
            ("date", "1700000000\n", 0),
            ("squeue", queue_text, 0),
            ("sacct", accounted_text, 0),
            (f"receipts:{REF}", receipts_text, 0),
            (f"status:{REF}", status_text, 0 if lines else 44),
            (f"record:{REF}", record_text, 0),
            (f"listing:{REF}", "".join(f"{size} {path}\n" for path, size in files.items()), 0),
            ("space", space, 0),
        ]

    def damage(self, rng: random.Random, facts: Any, text: str) -> str:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = self._hurt(rng, text)
        return text

    def _hurt(self, rng: random.Random, text: str) -> str:
        kind = rng.randrange(9)
        at = rng.randint(0, len(text))
        if kind == 0:
            return text[:at]
        if kind == 1:
            return text[at:]
        if kind == 2:
            return self.insert(rng, text)
        if kind == 3:
            # Another poll's answer breaks in.
            _, sections = self._sections(rng)
            other = "".join(framed(name, said, code, "0ther000") for name, said, code in sections)
            return text[:at] + other + text[at:]
        begin = f"{MARK}{NONCE} BEGIN "
        first, *blocks = text.split(begin)
        if not blocks:
            return text
        n = rng.randrange(len(blocks))
        if kind == 4:
            rng.shuffle(blocks)
        elif kind == 5:
            del blocks[n]
        elif kind == 6:
            blocks.append(blocks[n])
        elif kind == 7:
            # As the cap on a section does: it ends without its mark.
            blocks[n] = blocks[n][: rng.randint(0, len(blocks[n]))]
        else:
            blocks[n] = blocks[n].replace(f"{MARK}{NONCE} END", f"{MARK}{NONCE[:-1]}x END")
        return first + "".join(begin + block for block in blocks)

    def read(self, text: str) -> dict[str, Any]:
        said = read_evidence(text, NONCE, asked=True, accounting="on")
        record = said.record(REF)
        return {
            "queue": None if said.queue is None else set(said.queue),
            "accounted": set(said.accounted) if said.accounting is Accounting.GOOD else None,
            "receipts": said.receipts(REF),
            "status": said.status(REF),
            "record": record and record.text,
            "listing": said.listing(REF),
            "space": said.free_bytes(),
        }

    def fits(self, found: Any, facts: Any, *, damaged: bool) -> bool:
        if not damaged:
            return bool(found == facts)
        # A record's own text is judged by its parser, which refuses what was cut or run into.
        return all(
            found[key] is None or found[key] == facts[key] or (key == "record" and not _is_record(found[key]))
            for key in facts
        )


def _is_record(text: str) -> bool:
    try:
        Records().read(text)
    except ValueError:
        return False
    return True
