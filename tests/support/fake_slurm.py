"""Slurm's commands as small programs on PATH: a queue in a file, and faults to order.

Each call of a fault hook is one line of `script`: "sbatch 2 fail ..." acts on the second sbatch, and so on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

_PROGRAM = textwrap.dedent(
    """\
    #!{python}
    import fcntl, json, os, signal, sys, time
    from pathlib import Path
    home = Path({home!r})
    me = Path(sys.argv[0]).name
    args = sys.argv[1:]
    with (home / "calls").open("a") as calls:
        ours = {{k: v for k, v in os.environ.items() if k[:6] in ("SBATCH", "SQUEUE", "SLURM_", "SACCT_")}}
        calls.write(json.dumps([me, args, ours]) + "\\n")
    lock = (home / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    state = json.loads((home / "state.json").read_text())
    count = state["counts"][me] = state["counts"].get(me, 0) + 1
    def save():
        (home / "state.json.new").write_text(json.dumps(state))
        (home / "state.json.new").rename(home / "state.json")
    def option(name):
        return next((a.split("=", 1)[1] for a in args if a.startswith(name + "=")), None)
    def scripts():
        pid = os.getppid()
        while pid > 1:
            if b"submit.sh" in Path(f"/proc/{{pid}}/cmdline").read_bytes() and pid != os.getpid():
                yield pid
            pid = int(Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[1])
    def fault(when):
        for rule in state["faults"]:
            if rule[:3] == [me, count, when]:
                save()
                lock.close()
                if rule[3] == "kill-script":
                    for pid in reversed(list(scripts())):
                        os.kill(pid, signal.SIGKILL)
                    sys.exit(0)
                if rule[3] == "hang":
                    (home / "hanging").touch()
                    while not (home / "thaw").exists():
                        time.sleep(0.02)
                    print(state["last"])
                    sys.exit(0)
                sys.stderr.write(rule[4])
                sys.exit(rule[5])
    fault("before")
    if me == "sbatch":
        state["last"] += 1
        state["jobs"].append({{
            "id": state["last"],
            "name": option("--job-name"),
            "state": "PENDING",
            "reason": "JobHeldUser" if "--hold" in args else "Dependency",
            "dependency": option("--dependency"),
            "args": args,
        }})
        save()
        fault("after")
        sys.stderr.write(state["noise"])
        noisy = "Welcome 2 the cluster\\n" + str(state["last"]) + ";mqi"
        print(noisy if state["noise"] else state["last"], flush=True)
        fault("told")
    elif me == "squeue":
        names = (option("--name") or "").split(",")
        sys.stderr.write(state["noise"])
        for job in state["jobs"]:
            if job["state"] in ("PENDING", "RUNNING") and (names == [""] or job["name"] in names):
                if "%F|%j|%T|%r" in args:
                    for word, reason in job.get("tasks") or [(job["state"], job["reason"])]:
                        print(f"{{job['id']}}|{{job['name']}}|{{word}}|{{reason}}")
                elif "%F|%j" in args:
                    print(f"{{job['id']}}|{{job['name']}}")
                else:
                    row = (str(job["id"]), "N/A", job["state"], job["reason"], "1800000000", "", job["name"])
                    print("\\x1f".join(row))
    elif me == "scontrol":
        for job in state["jobs"]:
            if args[:1] == ["release"] and str(job["id"]) in args:
                job["reason"], job["tasks"] = "None", []
                job["released"] = job.get("released", 0) + 1
    elif me == "scancel":
        for job in state["jobs"]:
            if str(job["id"]) in args and job["name"] == option("--name"):
                job["state"] = "CANCELLED"
    elif me == "sacct":
        pass
    save()
    """
)


class FakeSlurm:
    """A queue below `home`; `path` goes first on PATH.

    A job's `tasks`, where it has any, are the rows (state, reason) that squeue shows of an array.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "bin"
        self.path.mkdir(parents=True)
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
            program = self.path / name
            program.write_text(_PROGRAM.format(python=sys.executable, home=str(home)))
            program.chmod(0o700)
        self._write({"last": 15, "jobs": [], "counts": {}, "faults": [], "noise": ""})

    def _read(self) -> dict:
        return json.loads((self.home / "state.json").read_text())

    def _write(self, state: dict) -> None:
        (self.home / "state.json").write_text(json.dumps(state))

    @property
    def jobs(self) -> list[dict]:
        return self._read()["jobs"]

    def live(self) -> list[tuple[int, str]]:
        return [(job["id"], job["name"].rsplit("-", 1)[-1]) for job in self.jobs if job["state"] == "PENDING"]

    def set(self, **changes: object) -> None:
        self._write({**self._read(), **changes})

    def change(self, job_id: int, **changes: object) -> None:
        state = self._read()
        next(job for job in state["jobs"] if job["id"] == job_id).update(changes)
        self._write(state)

    def fails(self, program: str, call: int, text: str, code: int = 1, when: str = "before") -> None:
        """The `call`-th call of a program ends so: before or after its effect, or once sbatch told its id."""
        self.set(faults=[*self._read()["faults"], [program, call, when, "fail", text, code]])

    def kills(self, program: str, call: int, when: str) -> None:
        """The script that makes the `call`-th call of a program is killed, before or after its effect."""
        self.set(faults=[*self._read()["faults"], [program, call, when, "kill-script"]])

    def hangs(self, program: str, call: int, when: str) -> None:
        """The `call`-th call waits, before or after its effect, until `thaw`."""
        self.set(faults=[*self._read()["faults"], [program, call, when, "hang"]])

    def thaw(self) -> None:
        (self.home / "thaw").touch()

    @property
    def hanging(self) -> bool:
        return (self.home / "hanging").exists()

    def calls(self, program: str) -> list[tuple[list[str], dict[str, str]]]:
        log = self.home / "calls"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [(args, env) for name, args, env in rows if name == program]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.path}:{os.environ['PATH']}", "HOME": str(self.home), **more}

    def start(self, script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**environment),
        )

    def run(self, script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script), *arguments],
            capture_output=True,
            text=True,
            env=self.environment(**environment),
            check=False,
            timeout=120,
        )
