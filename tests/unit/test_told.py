"""What is kept of a text for a person: nothing that came from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.controllers.told import without_names

MORE = "; `mqi-hpc status` and `show` tell more"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("uploading", "uploading"),
        ("job j01 planned", "job j01 planned"),
        ("the cluster answers again", "the cluster answers again"),
        ("rejected: '/data/Smith'\n  an incomplete fraction", f"rejected{MORE}"),
        ("registered, 2 beams: '/data/Smith'", f"registered, 2 beams{MORE}"),
        ("'/data/Smith' waits: half copied", f"... waits{MORE}"),
        ("set-up delivery 'Smith' is ignored", f"set-up delivery ... is ignored{MORE}"),
        ('"/data/O\'Hara" waits: half copied', f"... waits{MORE}"),
        ("'/data/O\\'Hara \"x\"' waits: why", f"... waits{MORE}"),
        ("cannot read /data/Smith", f"cannot read{MORE}"),
        ("a name 'without an end", f"a name{MORE}"),
        ("", ""),
    ],
)
def test_our_own_words_are_kept(text: str, kept: str) -> None:
    assert without_names(text) == kept


@given(name=st.text(min_size=4), tail=st.text())
def test_a_folder_in_quotes_is_never_named(name: str, tail: str) -> None:
    shown = without_names(f"the same files lie in {name!r}: {tail}")
    assert shown == f"the same files lie in ...{MORE}"
