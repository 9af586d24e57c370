"""All parsers of text from the cluster, by the names under which `./dev fuzz` knows them."""

from __future__ import annotations

from tests.fuzz.engine import Target
from tests.fuzz.own_text import Chains, Manifests, Receipts, Records, Status, Submit
from tests.fuzz.poll import Poll
from tests.fuzz.slurm_text import Arrays, Gpus, Partitions, Sacct, Squeue, Times, Words

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Poll(), Squeue(), Sacct(), Arrays(), Words(), Times(), Partitions(), Gpus(),
        Receipts(), Submit(), Status(), Records(), Chains(), Manifests(),
    )
}  # fmt: skip
