"""Answers of a script, found in whatever noise surrounds them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.core.errors import ConfigurationError, ConnectionError, MQIError, ProcessingError, ResourceError
from mqi_hpc.infrastructure.executors.local import LocalExecutor
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, new_nonce, parse, run_script
from mqi_hpc.infrastructure.executors.shell import OutcomeUnknown, Result

NONCE = "0123456789abcdef"


class FakeShell:
    """Answers every command with `stdout`, and keeps what it was asked."""

    target = "mqi@login:22"

    def __init__(self, stdout: bytes, *, exit_code: int = 0, stderr: bytes = b"") -> None:
        self.result = Result(stdout=stdout, stderr=stderr, exit_code=exit_code)
        self.argv: list[str] = []
        self.stdin = b""

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), **_: Any) -> Result:
        self.argv = list(argv)
        self.stdin = b"".join(stdin)
        return self.result

    def close(self) -> None: ...


def line(*words: str) -> bytes:
    return f"\n\x1e{NONCE} {' '.join(words)}\n".encode()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.lists(words, min_size=1, max_size=4)), st.lists(st.binary(max_size=50)))
def test_answers_are_found_in_any_noise(said: list[list[str]], noise: list[bytes]) -> None:
    noise = [n for n in noise if NONCE.encode() not in n] or [b""]
    output = b"".join(noise[i % len(noise)] + line(*s) for i, s in enumerate(said)) + noise[0]
    assert list(parse(output, NONCE)) == [Answer(s[0], tuple(s[1:])) for s in said]


@given(st.binary())
def test_rubbish_says_nothing_and_breaks_nothing(output: bytes) -> None:
    assert NONCE.encode() in output or list(parse(output, NONCE)) == []


@given(st.text())
def test_texts_come_back(text: str) -> None:
    assert decode_text(encoded(text)) == text.strip()


@pytest.mark.parametrize("word", ["a", "äö", "=", "YQ"])
def test_what_is_no_text_is_none(word: str) -> None:
    assert decode_text(word) == ""


def test_a_nonce_is_never_the_same() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100


def test_the_script_comes_first_on_stdin_and_its_input_after_it() -> None:
    shell = FakeShell(line("ONE", "x") + line("END"))
    answers = run_script(shell, "my script", ["a b"], timeout=1, stdin=[b"in", b"put"], nonce=NONCE)
    assert answers == [Answer("ONE", ("x",))]
    script, given_input = shell.stdin.split(b"\0")
    assert script.endswith(b"my script")
    assert given_input == b"input"
    assert shell.argv[-2:] == [NONCE, "a b"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("tar: x: Cannot write: No space left on device", ResourceError),
        ("mkdir: cannot create directory 'x': Disk quota exceeded", ResourceError),
        ("mkdir: cannot create directory '/x': Permission denied", ProcessingError),
        ("mkdir: cannot create directory '/x': Read-only file system", ConnectionError),
        ("cat: x: Input/output error", ConnectionError),
        ("", ConnectionError),
    ],
)
def test_a_failure_is_of_the_kind_its_words_tell(said: str, kind: type[MQIError]) -> None:
    shell = FakeShell(line("FAIL", encoded("making the folder"), encoded(said)) + line("END"), exit_code=1)
    with pytest.raises(kind, match=r"^mqi@login:22: making the folder failed on the cluster") as caught:
        run_script(shell, "", [], timeout=1, nonce=NONCE)
    assert said in str(caught.value)
    assert type(caught.value) is kind


@pytest.mark.parametrize("said", ["Permission denied", "Read-only file system", "anything"])
def test_a_workspace_that_cannot_be_used_is_a_matter_of_settings(said: str) -> None:
    shell = FakeShell(line("FAIL", encoded("making the workspace"), encoded(said)) + line("END"), exit_code=1)
    with pytest.raises(ConfigurationError, match=rf"{said}\. Check paths\.remote_workspace"):
        run_script(shell, "", [], timeout=1, nonce=NONCE)


def test_a_failure_without_words_is_still_one() -> None:
    with pytest.raises(ConnectionError, match="no reason given"):
        run_script(FakeShell(line("FAIL") + line("END")), "", [], timeout=1, nonce=NONCE)


@pytest.mark.parametrize("stdout", [b"", b"Welcome\n", line("ONE"), line("END", "x") + line("ONE")])
def test_a_script_that_did_not_come_to_its_end_is_an_outage(stdout: bytes) -> None:
    shell = FakeShell(stdout, exit_code=127, stderr=b"banner\nbash: command not found\n")
    with pytest.raises(ConnectionError, match=r"exit code 127.*command not found"):
        run_script(shell, "", [], timeout=1, nonce=NONCE)


def test_silence_is_told_as_silence() -> None:
    with pytest.raises(ConnectionError, match="it said nothing"):
        run_script(FakeShell(b""), "", [], timeout=1, nonce=NONCE)


@pytest.mark.parametrize("code", [124, 137])
def test_a_script_that_was_cut_short_has_no_known_outcome(code: int) -> None:
    with pytest.raises(OutcomeUnknown, match="within 7 s"):
        run_script(FakeShell(line("END"), exit_code=code), "", [], timeout=7, nonce=NONCE)


def test_with_a_sink_the_caller_reads() -> None:
    assert run_script(FakeShell(b""), "", [], timeout=1, sink=lambda _: None) == []
    with pytest.raises(ConnectionError, match="cat: broken"):
        run_script(FakeShell(b"", exit_code=9, stderr=b"cat: broken"), "", [], timeout=1, sink=lambda _: None)


def test_noclobber_of_a_profile_does_not_reach_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELLOPTS", "noclobber")
    script = 'tmp=$(mktemp); echo "$(id -u)" >"$tmp" && say WROTE; rm -f "$tmp"; say END'
    assert run_script(LocalExecutor(), script, [], timeout=30) == [Answer("WROTE", ())]


def test_a_warning_of_the_loader_is_no_part_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    (tmp_path / "file").write_text("i1")
    script = """
    say THERE "$(heard head -c 9 "$1/file" | text)"
    out=$(heard head -c 9 "$1/none") || say FAILS "$(printf '%s' "$out" | text)"
    say END
    """
    there, fails = run_script(LocalExecutor(), script, [str(tmp_path)], timeout=30)
    assert (there.word, decode_text(there.rest[0])) == ("THERE", "i1")
    assert (fails.word, "No such file" in decode_text(fails.rest[0])) == ("FAILS", True)


def test_exported_shell_options_do_not_reach_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASHOPTS", "failglob:nullglob")
    script = 'set -- /nowhere/*; say KEPT "$1"; say END'
    assert run_script(LocalExecutor(), script, [], timeout=30) == [Answer("KEPT", ("/nowhere/*",))]
