"""The steps of a case at which the program's death matters, listed so that tests can let it die there.

Each stands beside a commit or a command to the cluster. `reach` does nothing, unless a hook was installed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Failpoint(StrEnum):
    """Where it may die. What is named `kept` is committed; what came before it is not."""

    PLAN = "plan"
    """The case is kept, its job is not."""
    PLAN_KEPT = "plan-kept"
    """The intent is kept; nothing has been sent."""
    UPLOAD = "upload"
    """The upload is due, and is not begun."""
    UPLOAD_BEGUN = "upload-begun"
    """That it is begun is kept; nothing of it has been handed out."""
    UPLOAD_DONE = "upload-done"
    """All is on the cluster; that it is there is not kept."""
    UPLOAD_KEPT = "upload-kept"
    """That it is there is kept."""
    SURVEY = "survey"
    """A job's place is taken by one that the store does not know; its case's folder is to be read."""
    ADOPT = "adopt"
    """What is there is read and believed; nothing of it is kept."""
    ADOPT_KEPT = "adopt-kept"
    """The jobs that are there are kept as they were found."""
    SUBMIT = "submit"
    """The chain is due; that it is submitted is not kept."""
    SUBMIT_KEPT = "submit-kept"
    """That submit.sh is about to be started is kept; it is not started."""
    SUBMIT_SENT = "submit-sent"
    """submit.sh has been started on the cluster; its answer is waited for."""
    SUBMIT_ANSWERED = "submit-answered"
    """submit.sh's answer is here; nothing of it is kept."""
    STANDING_KEPT = "standing-kept"
    """That the chain stands and is released is kept, as submit.sh said."""
    FOUND = "found"
    """A look has found that a chain in doubt stands and is released; that is not kept."""
    FOUND_KEPT = "found-kept"
    """That a chain in doubt was found to stand is kept."""
    AGAIN = "again"
    """submit.sh is to be run again for a chain in doubt; that is not kept."""
    AGAIN_KEPT = "again-kept"
    """That submit.sh is to be run again is kept; it is not started."""
    VERDICT = "verdict"
    """A task is judged; that is not kept."""
    VERDICT_KEPT = "verdict-kept"
    """A verdict is kept; what follows from it has not begun."""
    CANCEL = "cancel"
    """Jobs are to be cancelled in Slurm; that it is tried is not kept."""
    CANCEL_KEPT = "cancel-kept"
    """That they are to be cancelled is kept; no scancel was started."""
    CANCEL_ANSWERED = "cancel-answered"
    """scancel's answer is here; nothing of it is kept."""
    DOWNLOAD = "download"
    """The download is due, and is not begun."""
    DOWNLOAD_BEGUN = "download-begun"
    """That it is begun is kept; nothing has been fetched."""
    DOWNLOAD_DONE = "download-done"
    """The results are home, verified; that they are is not kept."""
    DOWNLOAD_KEPT = "download-kept"
    """That they are home is kept."""


Hook = Callable[[Failpoint], None]


def _nothing(_: Failpoint) -> None:
    """Go on."""


_hooks: list[Hook] = [_nothing]


def install(hook: Hook | None) -> None:
    """Have `hook` called at every failpoint from now on; None: nothing happens there any more."""
    _hooks[0] = hook or _nothing


def reach(point: Failpoint) -> None:
    """Tell the hook that `point` is reached: it may end the program here."""
    _hooks[0](point)
