"""Pure parser of what sinfo says of the cluster's GPUs: per node how many there are and how many are taken.

One line a node and partition, five fields (NodeList, PartitionName, StateLong, Gres, GresUsed), each with
FIELD after it, so that nothing is padded or cut. Formats of 21.08 to 26.05:
`gpu:4`, `gpu:a100:2(S:0-1)`, `gpu:a100:2,gpu:v100:1`, `gpu:a100:1(IDX:0,2-3)`, `gpu:(null):0(IDX:N/A)`,
`gpu:no_consume:2`, `(null)`. Other generic resources are passed over; only where shares of GPUs (shards,
MPS) are in use, how many whole ones are free is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mqi_hpc.core.observation import FIELD, NotParsed

SINFO_FIELDS = ("NodeList", "PartitionName", "StateLong", "Gres", "GresUsed")
SINFO_FORMAT = ",".join(f"{name}:{FIELD}" for name in SINFO_FIELDS)

_NOTHING = frozenset({"", "(null)", "N/A"})
_GRES_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)(?:[:(]\S*)?\Z")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")
_COUNT = re.compile(r"([0-9]{1,15})([KMGTP]?)\Z")
_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
# A state may end in flags: * no answer, ~ # ! % power saving, $ maintenance, @ ^ reboot, - planned.
_STATE = re.compile(r"([a-z][a-z0-9_]*(?:\+[a-z0-9_]+)*)([*~#!%$@^-]*)\Z")
_SHARES = frozenset({"shard", "mps"})
_USABLE = frozenset({"idle", "mixed", "allocated", "completing", "planned"})
_ASLEEP_OR_AWAY = frozenset("*!%$@^")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """The GPUs of one node. `used` is None where Slurm does not say. `types` counts them by their type.

    `state` is Slurm's word with its flags ("mixed", "idle~", "down*"). `shared`: shards or MPS are in use;
    which GPUs they are on, each version says in other words.
    """

    node: str
    total: int
    used: int | None
    state: str
    partitions: tuple[str, ...]
    types: Mapping[str, int] = field(default_factory=dict)
    shared: bool = False

    @property
    def usable(self) -> bool:
        """Whether the node is in service, be it that it must be switched on first (`~`, `#`)."""
        match = _STATE.match(self.state)
        return match is not None and match[1] in _USABLE and not _ASLEEP_OR_AWAY & set(match[2])

    @property
    def free(self) -> int | None:
        """How many nobody holds, on a node in service: 0 on any other; None where it is not known."""
        if not self.usable:
            return 0
        return None if self.used is None or self.shared else max(0, self.total - self.used)


def parse_nodes(text: str) -> tuple[NodeGpus, ...]:
    """Return the nodes that have GPUs, by name. Raises NotParsed; it never guesses a number."""
    found: dict[str, NodeGpus] = {}
    for line in text.split("\n"):
        if not line:
            continue
        node = _node(line)
        known = found.setdefault(node.node, node)
        if known is not node:
            found[node.node] = _merged(known, node)
    return tuple(found[name] for name in sorted(found) if found[name].total)


def parse_gpus(text: str) -> tuple[int, dict[str, int]] | None:
    """Return how many GPUs a list of generic resources counts, and how many of each type.

    None where the text is Slurm's for nothing said. Raises NotParsed.
    """
    if text in _NOTHING:
        return None
    total, types = 0, dict[str, int]()
    for entry in _entries(text):
        counted = _gpu_entry(entry)
        if counted is not None:
            kind, count = counted
            total += count
            if kind:
                types[kind] = types.get(kind, 0) + count
    return total, types


def _node(line: str) -> NodeGpus:
    fields = line.split(FIELD)
    if len(fields) != len(SINFO_FIELDS) + 1 or fields[-1]:
        raise NotParsed(f"sinfo: a line of {len(fields)} fields: {line[:200]!r}")
    name, partition, state, gres, used = fields[:-1]
    if not _NODE.match(name):
        raise NotParsed(f"sinfo: no name of a node: {name[:100]!r}")
    if not _STATE.match(state):
        raise NotParsed(f"sinfo: no state of a node: {state[:100]!r}")
    total, types = parse_gpus(gres) or (0, {})
    taken = parse_gpus(used)
    return NodeGpus(
        node=name,
        total=total,
        used=(0 if not total else None) if taken is None else taken[0],
        state=state,
        partitions=() if partition in _NOTHING else (partition,),
        types=types,
        shared=any(map(_is_share_in_use, () if taken is None else _entries(used))),
    )


def _merged(one: NodeGpus, other: NodeGpus) -> NodeGpus:
    """Return a node that is in two partitions; both lines come from one answer and must agree."""
    both = replace(one, partitions=tuple(sorted({*one.partitions, *other.partitions})))
    if both != replace(other, partitions=both.partitions):
        raise NotParsed(f"sinfo: two lines of node {one.node} do not agree")
    return both


def _entries(text: str) -> Iterable[str]:
    """Split at the commas that stand in no brackets. Raises NotParsed where brackets do not close."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:at]
            start = at + 1
        if depth not in (0, 1):
            break
    if depth:
        raise NotParsed(f"generic resources with brackets that do not match: {text[:200]!r}")
    yield text[start:]


def _is_share_in_use(entry: str) -> bool:
    """Whether an entry tells of shards or MPS that jobs hold. Raises NotParsed."""
    name = _GRES_NAME.match(entry)
    if name is None or name[1] not in _SHARES:
        return False
    count = _COUNT.match(re.sub(r"\([^()]*\)", "", entry).rpartition(":")[2])
    if count is None:
        raise NotParsed(f"no count of shares: {entry[:100]!r}")
    return int(count[1]) > 0


def _gpu_entry(entry: str) -> tuple[str, int] | None:
    """Return type ("" where there is none) and count of one resource, None where it is no GPU."""
    name = _GRES_NAME.match(entry)
    if name is None:
        raise NotParsed(f"no generic resource: {entry[:100]!r}")
    if name[1] != "gpu":
        return None
    words = re.sub(r"(?:\((?:S|IDX):[^()]*\))+\Z", "", entry[name.end(1) :]).replace("(null)", "").split(":")
    words = [word for word in words if word and word != "no_consume"]
    count = _COUNT.match(words[-1]) if words else None
    kind = words[0] if len(words) == 2 else ""
    if count is None or len(words) > 2 or (kind and not _TYPE.match(kind)):
        raise NotParsed(f"no count of GPUs: {entry[:100]!r}")
    return kind, int(count[1]) * _FACTORS[count[2]]
