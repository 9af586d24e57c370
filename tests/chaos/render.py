"""The real renderer's chain.json and sbatch options, without the texts that no simulated program reads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mqi_hpc.core.interfaces import RenderRequest
from mqi_hpc.infrastructure.config.models import AppConfig
from mqi_hpc.infrastructure.slurm.renderer import Renderer
from mqi_hpc.records.chain import encode_chain
from mqi_hpc.records.layout import CHAIN, SUBMIT_SCRIPT, script
from tests.support.cluster_config import cluster_config, merged

_READ = ("--partition=", "--account=", "--gres=", "--array=", "--exclude=")
"""The options that a simulated sbatch reads."""
_DIGEST = "d" * 64
_GRID = {"size": [40, 30, 300], "spacing": [4, 5, 1], "position": [-80, -75, -280]}


@cache
def config(gpu_count: int | None) -> AppConfig:
    """Return the settings of a simulated site; made once a process."""
    changes = {
        "paths": {"remote_workspace": "/work"},
        "moqui": {"grid": _GRID},
        "resources": {"gpu_count": gpu_count},
    }
    return AppConfig.model_validate(merged(cluster_config(Path("/home/qa"), 22), changes))


class QuickRenderer(Renderer):
    """IRenderer. What it plans is the real one's: only Jinja is left out, and has tests of its own."""

    def job_files(self, request: RenderRequest) -> dict[str, bytes]:
        calls = self._calls(request)
        texts = {script(call.stage): f"#!/bin/bash\n# {call.stage}\n" for call in calls}
        digests = {call.stage: _DIGEST for call in calls}
        texts[CHAIN] = encode_chain(self._chain(request, calls, digests))
        texts[SUBMIT_SCRIPT] = "".join(
            f"submit {call.stage} {' '.join(one for one in call.options if one.startswith(_READ))}\n"
            for call in calls
        )
        return {name: text.encode() for name, text in texts.items()}


@cache
def renderer(gpu_count: int | None) -> QuickRenderer:
    """Return the renderer of a simulated site; made once a process."""
    return QuickRenderer(config(gpu_count), b"")
