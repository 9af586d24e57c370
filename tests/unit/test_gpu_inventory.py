"""What sinfo says of GPUs: every form Slurm prints, and never a number from rubbish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.gpu_inventory import SINFO_FIELDS, SINFO_FORMAT, NodeGpus, parse_gpus, parse_nodes
from mqi_hpc.core.observation import FIELD, NotParsed


def row(
    node: str = "g1", partition: str = "gpu", state: str = "mixed", gres: str = "gpu:4", used: str = "gpu:1"
) -> str:
    return "".join(value + FIELD for value in (node, partition, state, gres, used)) + "\n"


@pytest.mark.parametrize(
    ("text", "total", "types"),
    [
        ("gpu:4", 4, {}),
        ("gpu:0", 0, {}),
        ("gpu:4(S:0-1)", 4, {}),
        ("gpu:a100:2(S:0-1)", 2, {"a100": 2}),
        ("gpu:a100:2(S:0,2),gpu:v100:1(S:1)", 3, {"a100": 2, "v100": 1}),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", 4, {"a100": 4}),
        ("gpu:nvidia_a100-sxm4-40gb:8(S:0-7)", 8, {"nvidia_a100-sxm4-40gb": 8}),
        ("gpu:a100_1g.5gb:7", 7, {"a100_1g.5gb": 7}),
        ("gpu:1080:2", 2, {"1080": 2}),
        ("gpu:2(IDX:0-1)", 2, {}),
        ("gpu:a100:3(IDX:0,2-3)", 3, {"a100": 3}),
        ("gpu:0(IDX:N/A)", 0, {}),
        ("gpu:a100:0(IDX:N/A),gpu:v100:1(IDX:4)", 1, {"a100": 0, "v100": 1}),
        ("gpu(null):0", 0, {}),
        ("gpu:(null):2(IDX:0-1)", 2, {}),
        ("gpu:no_consume:2", 2, {}),
        ("gpu:a100:no_consume:2", 2, {"a100": 2}),
        ("gpu:1K", 1024, {}),
        ("shard:8(0/4,0/4),gpu:2(S:0)", 2, {}),
        ("mps:a100:400(100%),gpu:a100:2", 2, {"a100": 2}),
        ("gpu_memory:80G,gpu:1", 1, {}),
        ("craynetwork:4", 0, {}),
        ("lustre:no_consume:4G,gpu:1", 1, {}),
        ("gpu", None, None),
        ("gpu:", None, None),
        ("gpu:a100", None, None),
        ("gpu:-1", None, None),
        ("gpu:1.5", None, None),
        ("gpu:+4", None, None),
        ("gpu:4 ", None, None),
        ("gpu: 4", None, None),
        ("gpu:٤", None, None),
        ("gpu:a100:2:3", None, None),
        ("gpu:a100:2(S:0-1", None, None),
        ("gpu:a100:2)S:0-1(", None, None),
        ("gpu:a100:2(S:(0-1))", None, None),
        ("gpu:a100:2(WHAT:0)", None, None),
        ("gpu:4,", None, None),
        (",gpu:4", None, None),
        ("gpu:4;gpu:4", None, None),
        ("gpu:a b:4", None, None),
        ("slurm_load_node error: Unable to contact slurm controller", None, None),
    ],
)
def test_generic_resources(text: str, total: int | None, types: dict[str, int] | None) -> None:
    if total is None:
        with pytest.raises(NotParsed):
            parse_nodes(row(gres=text))
    else:
        assert parse_gpus(text) == (total, types)


# As real clusters print them: two GPUs of each of two types, and four untyped ones that shards lie on, of
# which a job holds one.
_A = "nvidia_a100-sxm4-40gb"
_SEEN = {
    "22.05": ("gpu:0,shard:0", ",shard:0", "gpu:2,shard:(null):1(IDX:0)", "gpu:2,shard:(null):0(IDX:N/A)"),
    "24.11": (
        "(null)",
        "",
        "gpu:(null):2(IDX:1-2),shard:(null):1(1/2,0/2,0/2,0/2)",
        "gpu:(null):2(IDX:1-2),shard:(null):0(0/2,0/2,0/2,0/2)",
    ),
    "26.05": (
        "(null)",
        "",
        "gpu:2(IDX:1-2),shard:1(1/2,-/2,-/2,0/2)",
        "gpu:2(IDX:1-2),shard:0(0/2,-/2,-/2,0/2)",
    ),
}


@pytest.mark.parametrize("version", _SEEN)
def test_types_and_shards_as_real_clusters_print_them(version: str) -> None:
    none, tail, shared, whole = _SEEN[version]
    typed = row(
        "g1", "gpu", "mixed", f"gpu:{_A}:2,gpu:v100:2", f"gpu:{_A}:1(IDX:0),gpu:v100:2(IDX:2-3){tail}"
    )
    c1 = row("c1", "cpu", "idle", "(null)", none)
    g1, g2 = parse_nodes(c1 + typed + row("g2", "gpu", "mixed", "gpu:4,shard:8", shared))
    assert (g1.total, g1.used, g1.free, g1.types) == (4, 3, 1, {_A: 2, "v100": 2})
    # A shard makes a GPU unfit for who wants a whole one: which one, each version says in other words.
    assert (g2.total, g2.used, g2.shared, g2.free) == (4, 2, True, None)
    (free,) = parse_nodes(row("g2", "gpu", "mixed", "gpu:4,shard:8", whole))
    assert (free.used, free.shared, free.free) == (2, False, 2)


@pytest.mark.parametrize(
    ("used", "shared"),
    [("gpu:0,mps:a100:200(100/200)", True), ("gpu:0,mps:0(0/100)", False), ("gpu:0,shard:1K", True)],
)
def test_mps_is_a_share_too(used: str, shared: bool) -> None:
    (node,) = parse_nodes(row(used=used))
    assert node.shared is shared


@pytest.mark.parametrize("text", ["", "(null)", "N/A"])
def test_nothing_said_is_no_number(text: str) -> None:
    assert parse_gpus(text) is None


def test_nodes_as_22_05_24_11_and_26_05_print_them() -> None:
    for none_used in ("gpu:0", "(null)"):
        text = (
            row("c1", "cpu", "idle", "(null)", none_used)
            + row("g1", "gpu", "mixed", "gpu:4", "gpu:3")
            + row("g1", "low", "mixed", "gpu:4", "gpu:3")
            + row("g2", "low", "drained", "gpu:4", "gpu:0")
            + row("g2", "gpu", "drained", "gpu:4", "gpu:0")
        )
        g1, g2 = parse_nodes(text)
        assert g1 == NodeGpus(node="g1", total=4, used=3, state="mixed", partitions=("gpu", "low"), types={})
        assert (g1.usable, g1.free) == (True, 1)
        assert (g2.partitions, g2.usable, g2.free) == (("gpu", "low"), False, 0)


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("idle", True),
        ("mixed", True),
        ("mixed-", True),
        ("allocated", True),
        ("completing", True),
        ("planned", True),
        ("idle~", True),
        ("idle#", True),
        ("idle%", False),
        ("idle*", False),
        ("idle@", False),
        ("idle^", False),
        ("mixed$", False),
        ("down", False),
        ("down*", False),
        ("drained", False),
        ("draining", False),
        ("maint", False),
        ("reserved", False),
        ("powering_down", False),
        ("idle+drain", False),
        ("inval", False),
        ("a_word_of_slurm_30", False),
    ],
)
def test_states(state: str, usable: bool) -> None:
    (node,) = parse_nodes(row(state=state))
    assert node.usable is usable
    assert node.free == (3 if usable else 0)


def test_what_slurm_does_not_say_is_not_known() -> None:
    (node,) = parse_nodes(row(used="(null)"))
    assert (node.used, node.free) == (None, None)
    (down,) = parse_nodes(row(used="(null)", state="down*"))
    assert (down.used, down.free) == (None, 0)


def test_more_used_than_there_are_leaves_none() -> None:
    (node,) = parse_nodes(row(gres="gpu:2", used="gpu:3"))
    assert (node.total, node.used, node.free) == (2, 3, 0)


def test_a_node_of_no_partition() -> None:
    (node,) = parse_nodes(row(partition="(null)"))
    assert node.partitions == ()


def test_no_line_is_no_node() -> None:
    assert parse_nodes("") == ()
    assert parse_nodes("\n") == ()


@pytest.mark.parametrize(
    "text",
    [
        "g1 gpu mixed gpu:4 gpu:1\n",
        row(node=""),
        row(node="g1 g2"),
        row(node="g[1-2]"),
        row(state=""),
        row(state="MIXED"),
        row(state="mixed+"),
        row(used="gpu:x"),
        row(used="gpu:1,shard:x"),
        row() + "sinfo: error: something\n",
        row().replace("\n", "more\n"),
        FIELD * len(SINFO_FIELDS) + "\n",
        row() + row(partition="low", used="gpu:2"),
        row() + row(partition="low", gres="gpu:8"),
        row() + row(partition="low", state="idle"),
        row(gres="gpu:a:4") + row(partition="low", gres="gpu:b:4"),
    ],
)
def test_what_does_not_have_the_form_gives_no_number(text: str) -> None:
    with pytest.raises(NotParsed):
        parse_nodes(text)


def test_the_format_asks_for_whole_fields() -> None:
    # Without a width nothing is padded or cut, on 22.05, 24.11 and 26.05 alike.
    fields = SINFO_FORMAT.split(",")
    assert fields == [f"{name}:\x1f" for name in SINFO_FIELDS]


_TYPES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,12}", fullmatch=True).filter(lambda t: t != "no_consume")
_TAILS = st.sampled_from(["", "(S:0-1)", "(S:0,2)", "(IDX:N/A)", "(IDX:0,2-3)", "(IDX:0-1)"])
_GPU = st.tuples(st.one_of(st.just(""), _TYPES), st.integers(0, 9999), _TAILS)
_OTHER = st.sampled_from(["shard:8(0/4,0/4)", "mps:400", "craynetwork:4", "lustre:no_consume:4G"])


@given(st.lists(st.one_of(_GPU, _OTHER), min_size=1, max_size=6))
def test_every_count_is_counted_once(entries: list[tuple[str, int, str] | str]) -> None:
    words, types, total = [], dict[str, int](), 0
    for entry in entries:
        if isinstance(entry, str):
            words.append(entry)
            continue
        kind, count, tail = entry
        words.append(f"gpu:{kind + ':' if kind else ''}{count}{tail}")
        total += count
        if kind:
            types[kind] = types.get(kind, 0) + count
    assert parse_gpus(",".join(words)) == (total, types)


@given(st.text(alphabet=st.sampled_from("gpu:a1,4()SIDX-0/ \x1f\nKé(null)"), max_size=60))
def test_rubbish_gives_no_error_but_not_parsed(text: str) -> None:
    for parse in (parse_gpus, parse_nodes):
        try:
            parse(text)
        except NotParsed:
            continue


@given(st.integers(1, 200))
def test_a_line_that_is_cut_short_gives_no_number(at: int) -> None:
    whole = row(gres="gpu:a100:12(S:0-1)", used="gpu:a100:11(IDX:0-10)", state="mixed")
    cut = whole[: at % (len(whole) - 2) + 1]
    with pytest.raises(NotParsed):
        parse_nodes(cut)
