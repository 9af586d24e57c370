"""`mqi-hpc run` as a process, as systemd would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.cli import PROGRAM, mqi
from tests.support.cluster import wait_until


class DaemonProcess:
    """One run of the daemon on a configuration; what it says goes to `said`. `env` is added to its own."""

    def __init__(self, config: Path, env: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.log = config.parent / "daemon.out"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(PROGRAM), "--config", str(config), "run"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=config.parent,
                env={**os.environ, "PYTHONWARNINGS": "default", **(env or {})},
            )

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> tuple[int, float]:
        """Ask it to end; returns exit code and seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120), time.monotonic() - began

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def cases(self) -> list[dict[str, Any]]:
        """What `status --json` says beside it."""
        assert self.process.poll() is None, self.said
        return all_cases(self.config)

    def until(self, wanted: dict[str, str], seconds: float = 300) -> list[dict[str, Any]]:
        """Wait until the cases have the statuses in `wanted` (by label), and return them all."""

        def there() -> list[dict[str, Any]]:
            cases = self.cases()
            found = {case["label"]: case["status"] for case in cases}
            return cases if wanted.items() <= found.items() else []

        try:
            return wait_until(there, seconds, f"cases {wanted}")
        except Exception as error:
            seen = [(case["label"], case["status"], case["attention"]) for case in self.cases()]
            error.add_note(f"{self.said}\n{seen}")
            raise


def all_cases(config: Path) -> list[dict[str, Any]]:
    done = mqi(config, "status", "--json")
    assert done.returncode == 0, done.stderr
    cases: list[dict[str, Any]] = json.loads(done.stdout)["cases"]
    return cases
