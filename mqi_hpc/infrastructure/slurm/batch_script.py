"""What a site's batch script may not do: be no script, or set an option that submission rests on.

sbatch reads options from the comments before the first command; the command line wins over them, but only
for options that stand on it.
"""

from __future__ import annotations

import shlex

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config.slurm import OWNED_OPTIONS

_OWNED_LETTERS = {
    "a": "--array", "d": "--dependency", "D": "--chdir", "e": "--error", "H": "--hold", "i": "--input",
    "J": "--job-name", "o": "--output", "W": "--wait",
}  # fmt: skip
_OTHER_SYSTEMS = ("#PBS", "#BSUB")


def check_batch_script(text: str, name: str) -> None:
    """Raise ConfigurationError where sbatch would refuse the script, or take an option of ours from it."""
    if not text.startswith("#!"):
        raise _refusal("it should begin with #!, like #!/bin/bash", name, 1)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            return
        if line.startswith(_OTHER_SYSTEMS):
            raise _refusal(f"sbatch reads {line!r} too: write it as #SBATCH", name, number)
        if line.startswith("#SBATCH"):
            _check_options(line, name, number)


def _check_options(line: str, name: str, number: int) -> None:
    try:
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError as error:
        raise _refusal(f"{line!r} cannot be read: {error}", name, number) from error
    for word in words:
        option = word.partition("=")[0]
        if word in ("hetjob", "packjob"):
            raise _refusal("a stage is one job of one component", name, number)
        if option.startswith("--"):
            # sbatch takes any unique beginning of an option for the option.
            owned = next((one for one in sorted(OWNED_OPTIONS) if one.startswith(option)), None)
        else:
            owned = _OWNED_LETTERS.get(option[1:2]) if option.startswith("-") else None
        if owned is not None:
            raise _refusal(f"{owned} is set by this program itself: leave it out", name, number)


def _refusal(what: str, name: str, number: int) -> ConfigurationError:
    return ConfigurationError(
        what, where=f"{name}:{number}", fix="Look at the site's template of it (slurm.templates)"
    )
