"""Strict reading of JSON: every key there, none too many, each of its kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqi_hpc.records.form import Form, FormatError, dumps, is_relative, loads

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé\ud800/.\0", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab0", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
plain = st.dictionaries(
    st.text('aé\n\\"', max_size=5),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)


def form(value: Any) -> Form:
    return Form({"k": value}, "it")


GETTERS: dict[str, tuple[Callable[[Form], Any], Any]] = {
    "text": (lambda f: f.text("k"), ["", "é", "a\nb"]),
    "digest": (lambda f: f.digest("k"), ["0" * 64, "abcdef" * 10 + "0123"]),
    "path": (lambda f: f.path("k"), ["a", "a/b.c/-d", "...", "é ü"]),
    "integer": (lambda f: f.integer("k"), [0, 1, 2**80]),
    "integer from 1": (lambda f: f.integer("k", 1), [1, 2]),
    "number": (lambda f: f.number("k"), [0, -1.5, 1e300]),
    "flag": (lambda f: f.flag("k"), [True, False]),
    "items": (lambda f: f.items("k"), [[], [1, "a"]]),
    "mapping": (lambda f: f.mapping("k"), [{}, {"a": 1}]),
    "three numbers": (lambda f: f.numbers("k", 3), [[1, 2.0, -3]]),
    "floats": (lambda f: f.floats("k"), [[], [1.5, 2]]),
    "integers": (lambda f: f.integers("k"), [[], [0, 7]]),
    "texts": (lambda f: f.texts("k"), [[], ["a", ""]]),
    "text or null": (lambda f: f.optional("k", f.text), [None, "a"]),
}
WRONG: dict[str, list[Any]] = {
    "text": [1, None, True, [], {}, "\ud800", "a\udfffb"],
    "digest": ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", 1, None],
    "path": ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0", "\x7f", 1, None],
    "integer": [-1, 1.0, True, "1", None, [1]],
    "integer from 1": [0, -1, False],
    "number": [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), True, "1", None, [1.0]],
    "flag": [0, 1, "true", None],
    "items": [{}, "ab", None, 1],
    "mapping": [[], "ab", None, 1],
    "three numbers": [[1, 2], [1, 2, 3, 4], [1, 2, "3"], [], {}, None],
    "floats": [[1, "2"], [None], [[1]], {}, None],
    "integers": [[1.0], [-1], [True], {}, None],
    "texts": [[1], [None], "ab", {}],
    "text or null": [1, [], False],
}


@pytest.mark.parametrize("kind", GETTERS)
def test_what_is_of_its_kind_is_taken_away_and_given(kind: str) -> None:
    read, values = GETTERS[kind]
    for value in values:
        reading = form(value)
        assert read(reading) == value
        assert reading.names() == []
        reading.end()


@pytest.mark.parametrize("kind", GETTERS)
def test_what_is_of_another_kind_or_missing_is_refused_with_its_place(kind: str) -> None:
    read, _ = GETTERS[kind]
    for value in WRONG[kind]:
        with pytest.raises(FormatError, match=r"^it: .*(k|[0-9]) (should be|is missing)|unknown keys"):
            read(form(value))
    with pytest.raises(FormatError, match="it: k is missing"):
        read(Form({}, "it"))


@pytest.mark.parametrize("kind", GETTERS)
@given(value=JSON)
@example(value=2**53 + 1)
@example(value=[0, 0, 2**53 + 1])
def test_no_value_passes_as_another_kind_or_crashes(kind: str, value: Any) -> None:
    read, _ = GETTERS[kind]
    try:
        given_back = read(form(value))
    except FormatError:
        return
    assert given_back == value


def test_forms_within_forms_say_where_they_are() -> None:
    reading = loads('{"a":{"b":[{"c":1},{"c":2}]}}', "file")
    outer = reading.form("a")
    first, second = outer.forms("b")
    assert (first.integer("c"), second.integer("c")) == (1, 2)
    assert second.what == "file: a: b[1]"
    with pytest.raises(FormatError, match=r"file: a: b\[0\]: c is missing"):
        first.integer("c")
    with pytest.raises(FormatError, match="file: x is no JSON object but list"):
        loads('{"x":[]}', "file").form("x")
    with pytest.raises(FormatError, match=r"file: x\[0\] is no JSON object but int"):
        loads('{"x":[1]}', "file").forms("x")


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(FormatError) as caught:
        form("x" * 10_000).integer("k")
    assert len(str(caught.value)) < 300


def test_keys_that_nobody_took_are_refused_by_name() -> None:
    with pytest.raises(FormatError, match="it: unknown keys a, b"):
        Form({"b": 1, "a": 2}, "it").end()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        "\ufeff{}",
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}',
        '{"a":1,"a":1}',
        '{"a":{"b":1,"b":2}}',
        '{"a":1}x',
        "[" * 100_000,
        '{"a":' + "1" * 5000 + "}",
        "{'a':1}",
        '{"a":01}',
    ],
)
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="it is no"):
        loads(text, "it")


@given(plain)
@example({"b": 1, "a": 1.0})
def test_what_is_written_is_canonical_and_comes_back(value: dict[str, Any]) -> None:
    text = dumps(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert "\n" not in text
    assert dumps(dict(reversed(value.items()))) == text
    reading = loads(text, "it")
    assert {name: reading.take(name) for name in reading.names()} == value


def test_nothing_that_is_no_number_is_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"a": float("nan")})


@given(st.text("a./\\\n\0é", max_size=8))
def test_a_relative_path_stays_in_its_folder(path: str) -> None:
    if is_relative(path):
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))
        assert path.isprintable()
