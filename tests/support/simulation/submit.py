"""submit.sh as it acts on the simulated cluster, step by step: it can be cut short between any two."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass

from mqi_hpc.core.observation import MARK, expand_array
from mqi_hpc.records import layout
from mqi_hpc.records.chain import Chain, ChainSubmission, decode_chain
from mqi_hpc.records.form import FormatError
from tests.support.simulation.clock import VirtualClock
from tests.support.simulation.filesystem import FileSystem
from tests.support.simulation.jobs import Request, SlurmError, SlurmJob
from tests.support.simulation.slurm import Slurm

Run = Generator[str, None, int]
"""Yields the name of each step before it is taken (`sbatch beams`, `receipt beams`, `release`); returns the
exit code."""


class _Finished(Exception):  # noqa: N818 - the script's own `finish`
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class SubmitScript:
    """One run of one job's submit.sh. `said` is what it has written so far."""

    files: FileSystem
    slurm: Slurm
    clock: VirtualClock
    folder: str
    nonce: str
    said: str = ""

    def run(self) -> Run:
        """Return the run, to be stepped through."""
        try:
            chain = self._chain()
            for submission in chain.submissions:
                yield from self._submit(chain, submission)
            head = chain.submissions[0]
            if self._head_is_held(head):
                yield from self._release(chain, head)
            raise _Finished(0)
        except _Finished as finished:
            self._say(f"DONE {finished.code}")
            return finished.code

    def _chain(self) -> Chain:
        content = self.files.read(f"{self.folder}/{layout.CHAIN}")
        if content is None:
            self._say("NOTE the job folder cannot be entered")
            raise _Finished(74)
        return decode_chain(content.decode())

    def _submit(self, chain: Chain, submission: ChainSubmission) -> Generator[str, None, None]:
        stage = submission.stage
        if self._receipt(submission) is None:
            waits = self._waits(chain, submission)
            if submission is not chain.submissions[0] and not self._head_is_held(chain.submissions[0]):
                if self._receipt(submission) is None:
                    self._say("HEAD not seen")
                    raise _Finished(77)
                return
            self._obey(chain)
            yield f"sbatch {stage}"
            slurm_id = self._sbatch(chain, submission, waits)
            yield f"receipt {stage}"
            self._publish(submission, slurm_id)
        found = self._receipt(submission)
        if found is None:
            raise _Finished(74)
        self._say(f"RECEIPT {stage} {' '.join(found)}")

    def _sbatch(self, chain: Chain, submission: ChainSubmission, waits: tuple[tuple[str, int], ...]) -> int:
        options = sbatch_options(self.files.read(f"{self.folder}/{layout.SUBMIT_SCRIPT}"), submission.stage)
        array = submission.stage == "beams"
        throttle = options.get("--array", "").partition("%")[2]
        try:
            return self.slurm.sbatch(
                Request(
                    name=submission.name,
                    partition=options.get("--partition", "gpu" if array else "cpu"),
                    account=options.get("--account", self.slurm.site.accounts[0]),
                    gpus=int(options.get("--gres", "gpu:1" if array else "gpu:0").rpartition(":")[2]),
                    indices=submission.indices if array else None,
                    throttle=int(throttle) if throttle else None,
                    waits=waits,
                    hold=submission is chain.submissions[0],
                    folder=self.folder,
                    stage=submission.stage,
                    left_out=tuple(filter(None, options.get("--exclude", "").split(","))),
                    memory=options.get("--mem", ""),
                    time=options.get("--time", ""),
                )
            )
        except SlurmError as error:
            for line in str(error).split("\n"):
                self._say(f"SBATCH {submission.stage} {line}")
            self._say(f"FAILED {submission.stage} {error.exit_code}")
            raise _Finished(75) from error

    def _publish(self, submission: ChainSubmission, slurm_id: int) -> None:
        line = f"{submission.name} {slurm_id} {int(self.clock.now())}\n"
        path = f"{self.folder}/{layout.receipt(submission.stage)}"
        if not self.files.publish(path, line.encode()):
            found = self._receipt(submission)
            if found is None or found[:2] != [submission.name, str(slurm_id)]:
                self._cancel_own(submission, slurm_id)

    def _obey(self, chain: Chain) -> None:
        """End where the job was called off, and take back what was submitted of it."""
        if not self.files.exists(f"{self.folder}/{layout.WITHDRAWN}"):
            return
        for submission in reversed(chain.submissions):
            receipt = self._receipt(submission)
            if receipt is not None:
                self._cancel_own(submission, int(receipt[1]))
        self._say("NOTE the job was called off")
        raise _Finished(78)

    def _cancel_own(self, submission: ChainSubmission, slurm_id: int) -> None:
        try:
            self.slurm.scancel(submission.name, slurm_id)
        except SlurmError as error:
            self._say(f"NOTE scancel {slurm_id}: {error}")

    def _waits(self, chain: Chain, submission: ChainSubmission) -> tuple[tuple[str, int], ...]:
        """Return what a submission waits for, as chain.json names it, with the ids of the receipts."""
        if submission.dependency is not None:
            condition, *names = submission.dependency.split(":")
        else:
            at = chain.submissions.index(submission)
            condition = {"beams": "afterok"}.get(submission.stage, "afterany")
            names = [] if at == 0 else [chain.submissions[at - 1].stage]
        waits: list[tuple[str, int]] = []
        for name in names:
            job, _, stage = name.rpartition("/")
            if not job:
                receipt = self._receipt(chain.submission(stage))
                if receipt is None:
                    raise _Finished(74)
                waits.append((condition, int(receipt[1])))
            else:
                older = self._older(chain, job, stage)
                waits += [] if older is None else [(condition, older)]
        return tuple(waits)

    def _older(self, chain: Chain, job: str, stage: str) -> int | None:
        """Return the id of an older job's submission that has not ended."""
        path = f"{self.folder.rpartition('/')[0]}/{job}/{layout.receipt(stage)}"
        words = (self.files.read(path) or b"").decode().split()
        name = layout.submission_name(chain.instance, chain.key, job, stage)
        if not words:
            return None
        if words[0] != name:
            raise _Finished(74)
        return next((one.id for one in self._live(name) if one.id == int(words[1])), None)

    def _head_is_held(self, head: ChainSubmission) -> bool:
        receipt = self._receipt(head)
        if receipt is None:
            raise _Finished(74)
        claimed = any(name.startswith(f"claim.{head.stage}-") for name in self.files.names(self.folder))
        held = any(job.id == int(receipt[1]) and job.held for job in self._live(head.name))
        if held and claimed:
            self._say("HEAD is held again, although it has begun its work")
            raise _Finished(77)
        return held

    def _release(self, chain: Chain, head: ChainSubmission) -> Generator[str, None, None]:
        dependants = chain.submissions[1:]
        for submission in dependants:
            receipt = self._receipt(submission)
            if receipt is None:
                raise _Finished(74)
            if all(job.id != int(receipt[1]) for job in self._live(submission.name)):
                self._say(f"HEAD is held, but {' or '.join(s.stage for s in dependants)} are gone")
                raise _Finished(77)
        self._obey(chain)
        yield "release"
        receipt = self._receipt(head)
        try:
            self.slurm.release(int(receipt[1]) if receipt else 0)
        except SlurmError as error:
            self._say(f"NOTE release: {error}")
        if self._head_is_held(head):
            self._say("NOTE the head is held still")
            raise _Finished(76)

    def _receipt(self, submission: ChainSubmission) -> list[str] | None:
        """Return the words of a receipt that is there and ours, None where there is none."""
        content = self.files.read(f"{self.folder}/{layout.receipt(submission.stage)}")
        if content is None:
            return None
        words = content.decode("utf-8", "replace").split()
        if len(words) != 3 or words[0] != submission.name or not (words[1] + words[2]).isdecimal():
            self._say(f"NOTE receipt.{submission.stage} is damaged or not of this job: {' '.join(words)}")
            raise _Finished(74)
        return words

    def _live(self, name: str) -> list[SlurmJob]:
        try:
            return self.slurm.live(name)
        except SlurmError as error:
            self._say(f"NOTE squeue: {error}")
            raise _Finished(76) from error

    def _say(self, text: str) -> None:
        self.said += f"{MARK}{self.nonce} {text}\n"


def sbatch_options(script: bytes | None, stage: str) -> dict[str, str]:
    """Return the options that a rendered submit.sh gives sbatch for a stage; none where it has none.

    >>> sbatch_options(b"submit beams \\\\\\n  --gres=gpu:1 \\\\\\n  --array=0-2%2\\n", "beams")
    {'--gres': 'gpu:1', '--array': '0-2%2'}
    """
    lines = (script or b"").decode().replace("\\\n", " ").split("\n")
    words = next((shlex.split(line) for line in lines if line.startswith(f"submit {stage} ")), [])
    options = dict(word.partition("=")[::2] for word in words[2:])
    if "--array" in options and not expand_array(options["--array"]):
        raise FormatError(f"{options['--array']!r} is no array")
    return options
