"""`./dev demo`: one synthetic case, from folder to RT Dose, through the real cluster, as a user does it."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / ".dev" / "cluster"
CONFIG = CLUSTER / "config.yaml"


def run(*words: str) -> int:
    """Show a command and run it."""
    print(f"\n$ mqi-hpc {shlex.join(words)}", flush=True)
    command = [str(Path(sys.executable).parent / "mqi-hpc"), "--config", str(CONFIG), *words]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Run the demonstration; the exit code is that of the submit."""
    began = time.monotonic()
    case = CLUSTER / "cases" / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    code = run("sample-case", str(case), "--beams", "3", "--layers", "8")
    code = code or run("submit", str(case), "--wait")
    if code == 0:
        run("status")
        print(f"\nFrom folder to RT Dose in {time.monotonic() - began:.0f} s. NOT FOR CLINICAL USE.")
        print("Next: ./dev cluster ssh -- sacct -X   and   ./dev cluster fault 2 exit 3, then ./dev demo")
    return code


if __name__ == "__main__":
    sys.exit(main())
