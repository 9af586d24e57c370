"""Asks Slurm for the GPUs of its nodes: one command, one sinfo."""

from __future__ import annotations

import base64
import binascii

from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.core.gpu_inventory import SINFO_FORMAT, NodeGpus, parse_nodes
from mqi_hpc.core.observation import NotParsed
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import KILL_AFTER, Shell

# A warning on stderr must not stand among rows.
_SINFO = r"""
errors=$(mktemp) || fail 'making a temporary file' 'mktemp gave none'
out=$(timeout -k 5 "$1" sinfo -h -N -a -O "$2" 2>"$errors")
rc=$?
say SINFO "$rc" "$(text <"$errors")"
rm -f -- "$errors"
say ROWS "$(printf '%s' "$out" | base64 | tr -d '\n')"
say END
"""


def read_cluster_gpus(shell: Shell, timeout: float) -> tuple[NodeGpus, ...]:
    """Return the nodes that have GPUs, by name, as Slurm sees them now; `timeout` in seconds.

    Raises ConnectionError where Slurm did not answer, or with words that are not known: no number is
    guessed.
    """
    limit = f"{max(1.0, timeout):.0f}"
    answers = run_script(shell, _SINFO, [limit, SINFO_FORMAT], timeout=timeout + 2 * KILL_AFTER, control=True)
    said = {answer.word: answer for answer in answers}
    try:
        code, *errors = said["SINFO"].rest
        rows = _rows(said["ROWS"])
    except (KeyError, ValueError) as error:
        raise ConnectionError("what sinfo said did not come whole", where=shell.target) from error
    if code != "0":
        words = " ".join(map(decode_text, errors)) or "it gave no reason"
        late = f" (not within {limit} s)" if code in ("124", "137") else ""
        raise ConnectionError(
            f"sinfo failed with exit code {code}{late}: {words}",
            where=shell.target,
            fix="Try `sinfo` there by hand; `mqi-hpc doctor` checks more",
        )
    try:
        return parse_nodes(rows)
    except NotParsed as error:
        raise ConnectionError(
            f"what sinfo says is not understood: {error}",
            where=shell.target,
            fix="Please report this line and `sinfo --version`",
        ) from error


def _rows(answer: Answer) -> str:
    try:
        # Not stripped: the separator of the fields counts as white space.
        return base64.b64decode("".join(answer.rest), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("no text") from error
