"""MANIFEST.sha256: as sha256sum reads it, and nothing else."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records.form import FormatError
from mqi_hpc.records.manifest import format_manifest, parse_manifest, subset_digest

A, B = "a" * 64, "b" * 64
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.text("ab.é *-'$ ", min_size=1, max_size=6).filter(lambda n: n not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, digests, max_size=6))
def test_a_manifest_comes_back_and_is_the_same_in_any_order(manifest: dict[str, str]) -> None:
    text = format_manifest(manifest)
    assert parse_manifest(text) == manifest
    assert format_manifest(dict(reversed(manifest.items()))) == text


@given(st.dictionaries(paths, digests, min_size=1, max_size=4), st.data())
def test_a_manifest_cut_short_is_refused_or_ends_with_a_whole_line(
    manifest: dict[str, str], data: st.DataObject
) -> None:
    text = format_manifest(manifest)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    try:
        assert parse_manifest(cut).items() < manifest.items()
    except FormatError:
        assert not cut.endswith("\n")


@pytest.mark.parametrize(
    "line",
    [
        "\n",
        f"{A} x\n",
        f"{A}  \n",
        f"{A}  x",
        f"{A} *x\n",
        f"{A.upper()}  x\n",
        f"{A[1:]}  x\n",
        f"\\{A}  x\n",
        f"{A}  /x\n",
        f"{A}  ../x\n",
        f"{A}  a/../x\n",
        f"{A}  a//x\n",
        f"{A}  ./x\n",
        f"{A}  a\\x\n",
        f"{A}  a\rx\n",
        f"{A}  a\0x\n",
        f"{A}  x\n{B}  x\n",
        f"{A}  x\n\n",
        f"{A}  a\x1ex\n",
        f"{A}  \udc80\n",
        "rubbish\n",
    ],
)
def test_any_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(FormatError, match=r"manifest (line|is cut off)"):
        parse_manifest(line)


@pytest.mark.parametrize(
    ("path", "digest"),
    [("a\nb", A), ("/a", A), ("../a", A), ("a\\b", A), ("", A), ("\udc80", A), ("a", "xyz"), ("a", A + "0")],
)
def test_what_could_not_be_read_back_is_not_written(path: str, digest: str) -> None:
    with pytest.raises(FormatError):
        format_manifest({path: digest})


def test_a_path_that_forges_a_line_is_not_written() -> None:
    with pytest.raises(FormatError, match="read back"):
        format_manifest({f"a\n{B}  b": A})


def test_sha256sum_reads_what_we_write(tmp_path: Path) -> None:
    for name in ("plan.dcm", "beam_1/1.ptn", "beam_1/two words.ptn", "*.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = {
        str(p.relative_to(tmp_path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in tmp_path.rglob("*")
        if p.is_file()
    }
    (tmp_path / "M").write_text(format_manifest(found))
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "M"], cwd=tmp_path, check=True)


MANIFEST = {"plan.dcm": A, "plan.dcm.bak": B, "beam_1/1.ptn": A, "beam_1/2.ptn": B, "beam_10/1.ptn": B}


def test_a_beams_digest_is_that_of_its_own_files_and_the_plan() -> None:
    wanted = f"{A}  beam_1/1.ptn\n{B}  beam_1/2.ptn\n{A}  plan.dcm\n"
    assert subset_digest(MANIFEST, ("plan.dcm", "beam_1/")) == hashlib.sha256(wanted.encode()).hexdigest()
    assert subset_digest(MANIFEST, ("beam_1/", "plan.dcm")) == subset_digest(
        MANIFEST, ("plan.dcm", "beam_1/")
    )


@pytest.mark.parametrize("path", ["plan.dcm", "beam_1/1.ptn", "beam_1/2.ptn"])
def test_any_change_of_a_beams_files_changes_its_digest(path: str) -> None:
    changed = {**MANIFEST, path: "c" * 64}
    assert subset_digest(changed, ("plan.dcm", "beam_1/")) != subset_digest(MANIFEST, ("plan.dcm", "beam_1/"))


def test_other_beams_and_other_files_do_not_touch_it() -> None:
    changed = {**MANIFEST, "beam_10/1.ptn": "c" * 64, "plan.dcm.bak": "c" * 64, "beam_2/1.ptn": A}
    assert subset_digest(changed, ("plan.dcm", "beam_1/")) == subset_digest(MANIFEST, ("plan.dcm", "beam_1/"))


@pytest.mark.parametrize("prefixes", [("plan.dcm", "beam_2/"), ("plan",), ("beam_1",)])
def test_a_digest_of_nothing_is_refused(prefixes: tuple[str, ...]) -> None:
    with pytest.raises(FormatError, match=f"the manifest has no {prefixes[-1]}"):
        subset_digest(MANIFEST, prefixes)
