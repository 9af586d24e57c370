"""Submit, observe and cancel: each one command on the cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from mqi_hpc.core.effects import Cancel, Completion, Failure, Observe, Submit
from mqi_hpc.core.errors import ConnectionError
from mqi_hpc.core.failpoints import Failpoint, reach
from mqi_hpc.core.interfaces import IRenderer
from mqi_hpc.infrastructure.executors.script import Answer, decode_text, run_script
from mqi_hpc.infrastructure.executors.shell import (
    KILL_AFTER,
    OUTPUT_CAP,
    TIMED_OUT,
    OutcomeUnknown,
    Result,
    Shell,
)
from mqi_hpc.records.layout import SUBMIT_SCRIPT, WITHDRAWN

SCANCEL_SECONDS = 60
MARK_SECONDS = 25
# squeue, sacct and the files of the jobs have limits of their own; this one is for all of them together.
OBSERVE_FACTOR = 3

_CANCEL = r"""
user=$(id -un)
limit=$1 folder=$2 mark=$3
shift 3
# The mark first: what begins after it is turned away by the fence, and what began before is in the queue. A
# file system that hangs must not keep the jobs.
if [ -n "$folder" ]; then
  make='cd -- "$1" && { [ -e "$2" ] || : >"$2"; } && sync .'
  out=$(timeout -k 2 20 bash -c "$make" mqi-hpc "$folder" "$mark" 2>&1)
  say MARK "$?" "$(printf '%s' "$out" | text)"
fi
while [ $# -gt 0 ]; do
  out=$(timeout -k 5 "$limit" scancel -u "$user" --name="$1" "$2" 2>&1)
  say SCANCEL "$2" "$?" "$1" "$(printf '%s' "$out" | text)"
  shift 2
done
say END
"""


class Control:
    """The short commands. Each returns the completion of its effect; errors of the transport are raised."""

    def __init__(
        self, shell: Shell, renderer: IRenderer, *, submit_timeout: float, command_timeout: float
    ) -> None:
        self._shell = shell
        self._renderer = renderer
        self._submit_timeout = submit_timeout
        self._observe_timeout = OBSERVE_FACTOR * command_timeout

    def submit(self, effect: Submit) -> Completion:
        """Run the job's submit.sh; `uncertain` where it was cut short."""
        script = f"{effect.job_folder}/{SUBMIT_SCRIPT}"
        result = self._shell.run(
            ["bash", script, effect.nonce], stdin=_started(), timeout=self._submit_timeout, control=True
        )
        if result.exit_code in TIMED_OUT:
            return Completion(
                effect=effect,
                output=_said(result),
                exit_code=result.exit_code,
                error=f"{self._shell.target}: {SUBMIT_SCRIPT} did not end within {self._submit_timeout:.0f}"
                " s; whether it submitted is not known yet",
                failure=Failure.OUTAGE,
                uncertain=True,
            )
        return Completion(effect=effect, output=_said(result), exit_code=result.exit_code)

    def observe(self, effect: Observe) -> Completion:
        """Run the poll script; what came of it is returned even where it was cut short."""
        script = self._renderer.observe_script(effect).encode()
        try:
            result = self._shell.run(
                ["bash", "-s"],
                stdin=[script],
                timeout=self._observe_timeout,
                control=True,
                cap=OUTPUT_CAP,
            )
        except OutcomeUnknown as error:
            if not error.partial:
                raise
            # Each section is valid by itself: a file system that hangs costs only the last ones.
            partial = error.partial.decode("utf-8", "replace")
            return Completion(effect=effect, output=partial, exit_code=TIMED_OUT[0])
        return Completion(effect=effect, output=_said(result), exit_code=result.exit_code)

    def cancel(self, effect: Cancel) -> Completion:
        """Make the mark, and run scancel for each target in order; exit code 1 where one of these failed.

        Whether the mark stands, a look tells.
        """
        if not effect.targets and not effect.mark:
            return Completion(effect=effect)
        arguments = [str(SCANCEL_SECONDS), effect.mark, WITHDRAWN]
        for name, slurm_id in effect.targets:
            arguments += [name, str(slurm_id)]
        limit = len(effect.targets) * (SCANCEL_SECONDS + KILL_AFTER) + KILL_AFTER + MARK_SECONDS
        said = run_script(self._shell, _CANCEL, arguments, timeout=limit, control=True)
        answers = [answer for answer in said if answer.word == "SCANCEL"]
        if len(answers) != len(effect.targets):
            raise ConnectionError("not every scancel was reported", where=self._shell.target)
        failed = any(answer.rest[1] != "0" for answer in answers)
        lines = [*(_marked(answer) for answer in said if answer.word == "MARK"), *map(_line, answers)]
        return Completion(effect=effect, output="\n".join(lines), exit_code=int(failed))


def _started() -> Iterator[bytes]:
    """Feed a command nothing: what feeds it is asked once it has been started."""
    reach(Failpoint.SUBMIT_SENT)
    yield from ()


def _marked(answer: Answer) -> str:
    code, *text = answer.rest
    said = decode_text(text[0]) if text else ""
    return f"mark {WITHDRAWN}: exit {code}" + (f": {said}" if said else "")


def _line(answer: Answer) -> str:
    slurm_id, code, name, *text = answer.rest
    said = decode_text(text[0]) if text else ""
    return f"scancel --name={shlex.quote(name)} {slurm_id}: exit {code}" + (f": {said}" if said else "")


def _said(result: Result) -> str:
    """Return what a command said; its errors too, where it failed."""
    text = result.stdout.decode("utf-8", "replace")
    errors = result.stderr.decode("utf-8", "replace").strip()
    return f"{text}\n{errors}\n" if result.exit_code and errors else text
