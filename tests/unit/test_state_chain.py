"""The chain of events: no event can be changed, moved, added or left out unseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.event_chain import ChainedEvent, chain_fault, next_event

JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
EVENTS = st.lists(
    st.fixed_dictionaries({
        "at": st.floats(0, 1e12),
        "kind": st.text(),
        "case_id": st.one_of(st.none(), st.text()),
        "data": st.dictionaries(st.text(), JSON, max_size=3),
    }),
    max_size=5,
)  # fmt: skip


def chain(events: list[dict[str, object]]) -> list[ChainedEvent]:
    made: list[ChainedEvent] = []
    for number, event in enumerate(events, start=1):
        made.append(next_event(made[-1].digest if made else "", number=number, **event))  # type: ignore[arg-type]
    return made


@given(events=EVENTS)
def test_what_was_appended_is_whole(events: list[dict[str, object]]) -> None:
    made = chain(events)
    assert chain_fault(made, made[-1].digest if made else "") is None


@given(events=EVENTS.filter(bool), data=st.data())
def test_any_change_shows(events: list[dict[str, object]], data: st.DataObject) -> None:
    made = chain(events)
    head = made[-1].digest
    at = data.draw(st.integers(0, len(made) - 1))
    event = {name: getattr(made[at], name) for name in ChainedEvent.__slots__}
    event |= data.draw(
        st.sampled_from([
            {"at": made[at].at + 1},
            {"kind": f"{made[at].kind}x"},
            {"case_id": "" if made[at].case_id is None else None},
            {"number": made[at].number + 1},
            {"body": '{"other":1}'},
            {"digest": "0" * 64},
        ])
    )  # fmt: skip
    changed = [*made[:at], ChainedEvent(**event), *made[at + 1 :]]
    assert chain_fault(changed, head) is not None
    assert chain_fault([*made[:at], *made[at + 1 :]], head) is not None
    assert chain_fault([*made, made[at]], head) is not None


@pytest.mark.parametrize(
    "body",
    [
        '{"a": 1}',
        "[]",
        "1",
        "nonsense",
        '{"b":1,"a":2}',
        '{"a":\n1}',
        "",
        '{"a":NaN}',
        pytest.param('{"a":' * 99_999, id="deep"),
    ],
)
def test_data_in_another_form_is_none(body: str) -> None:
    (made,) = chain([{"at": 1.0, "kind": "k", "case_id": None, "data": {}}])
    forged = next_event("", number=1, at=1.0, kind="k", case_id=None, data={"a": 1})
    assert chain_fault([made], made.digest) is None
    # With a digest that fits: only the form betrays it.
    other = ChainedEvent(number=1, at=1.0, kind="k", case_id=None, body=body, digest=_digest_of(forged, body))
    assert chain_fault([other], other.digest) == "event 1 has been changed, or one before it"


def _digest_of(event: ChainedEvent, body: str) -> str:
    import hashlib
    import json

    fields = ["", event.number, event.at, event.kind, event.case_id, body]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_json_has_no_word_for_is_no_event(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        next_event("", number=1, at=1.0, kind="k", case_id=None, data={"x": value})
