"""An sbatch and a scontrol that lie, kill, freeze and meddle, each chain in a way of its own."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from tests.support.cluster import Cluster, wait_until

_FOLDER = "/var/tmp/misfortunes"
# Before the real ones on the PATH of sshd. A chain takes the next misfortune at its head; it is spent once.
_COMMON = r"""#!/bin/bash
list={folder}
taken() {{ # chain: sets `kind` and `at`; none where there is no misfortune for it
  local line
  kind='' at=''
  exec 9>>"$list/lock"
  flock 9
  if [ ! -e "$list/of.$1" ]; then
    line=$(head -n 1 "$list/next")
    sed -i 1d "$list/next"
    printf '%s\n' "$line" >"$list/of.$1"
  fi
  exec 9>&-
  read -r kind at <"$list/of.$1"
}}
spend() {{ mv "$list/of.$1" "$list/spent.$1"; : >"$list/of.$1"; }}
"""
_SBATCH = (
    _COMMON
    + r"""
for word; do
  case $word in --job-name=*) chain=${{word#--job-name=}} ;; *.sbatch) stage=${{word%.sbatch}} ;; esac
done
[ -n "${{stage:-}}" ] || exec /usr/bin/sbatch "$@"
chain=${{chain%-*}}
taken "$chain"
[ "$at" = "$stage" ] || exec /usr/bin/sbatch "$@"
spend "$chain"
case $kind in
  timed-out)
    /usr/bin/sbatch "$@" >/dev/null
    echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
    exit 1 ;;
  die-before) kill -KILL 0 ;;
  die-after) /usr/bin/sbatch "$@"; kill -KILL 0 ;;
  freeze)
    id=$(/usr/bin/sbatch "$@")
    ps -o pgid= $$ | tr -d ' ' >"$list/frozen.$chain"
    kill -STOP 0
    printf '%s\n' "$id" ;;
  wait)
    /usr/bin/sbatch "$@" || exit
    : >"$list/waits.$chain"
    until [ -e "$list/go" ]; do sleep 0.1; done ;;
  twice)
    setsid bash "$PWD/submit.sh" other >/dev/null 2>&1 </dev/null &
    exec /usr/bin/sbatch "$@" ;;
  empty) : >"receipt.$stage"; exec /usr/bin/sbatch "$@" ;;
  damaged) echo "half a rec" >"receipt.$stage"; exec /usr/bin/sbatch "$@" ;;
  cancelled)
    /usr/bin/sbatch "$@" || exit
    read -r _ id _ <receipt.interpret
    /usr/bin/scancel "$id"
    kill -KILL 0 ;;
esac
"""
)
_SCONTROL = (
    _COMMON
    + r"""
[ "$1" = release ] || exec /usr/bin/scontrol "$@"
read -r chain _ <receipt.interpret
chain=${{chain%-*}}
taken "$chain"
[ "$at" = release ] || exec /usr/bin/scontrol "$@"
spend "$chain"
case $kind in
  deaf) exit 1 ;;
  die-before) kill -KILL 0 ;;
  die-after) /usr/bin/scontrol "$@"; kill -KILL 0 ;;
esac
"""
)


class Misfortunes:
    """Those of a cluster, while the block lasts: `what step`, one a chain, in order of submission."""

    def __init__(self, cluster: Cluster, kinds: Iterable[str]) -> None:
        self._cluster = cluster
        self._kinds = list(kinds)

    def __enter__(self) -> Misfortunes:
        self._cluster.root(f"rm -rf {_FOLDER} && install -d -m 777 {_FOLDER}")
        self._put(f"{_FOLDER}/next", "".join(f"{kind}\n" for kind in self._kinds), "666")
        for name, text in (("sbatch", _SBATCH), ("scontrol", _SCONTROL)):
            self._put(f"/usr/local/bin/{name}", text.format(folder=_FOLDER), "755")
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.root("rm -f /usr/local/bin/sbatch /usr/local/bin/scontrol")
        for chain in self.frozen():
            self.thaw(chain)
        self._cluster.root(f"rm -rf {_FOLDER}")

    def spent(self) -> dict[str, str]:
        """The misfortunes that have come true, by chain (`mqi-<instance>-<key>-j01`)."""
        out = self._cluster.root(f"cd {_FOLDER} && grep -H . spent.* || true").stdout
        lines = (line.partition(":") for line in out.splitlines())
        return {name.removeprefix("spent."): kind for name, _, kind in lines}

    def waiting(self) -> list[str]:
        """The chains whose sbatch has submitted and waits to be let go."""
        out = self._cluster.root(f"cd {_FOLDER} && ls waits.* 2>/dev/null || true").stdout
        return [name.removeprefix("waits.") for name in out.split()]

    def let_go(self) -> None:
        """Let every sbatch that waits tell its id."""
        self._cluster.root(f"touch {_FOLDER}/go")

    def frozen(self) -> list[str]:
        """The chains whose submit.sh stands still."""
        out = self._cluster.root(f"cd {_FOLDER} && ls frozen.* 2>/dev/null || true").stdout
        return [name.removeprefix("frozen.") for name in out.split()]

    def thaw(self, chain: str) -> None:
        """Let a chain's submit.sh go on, and wait for its end."""
        at = shlex.quote(f"{_FOLDER}/frozen.{chain}")
        group = self._cluster.root(f"cat {at} && rm {at}").stdout.strip()
        self._cluster.root(f"kill -CONT -- -{group}")
        gone = f"! pgrep -g {group} >/dev/null"
        wait_until(lambda: self._cluster.root(gone, check=False).returncode == 0, 60, "a thawed run's end")

    def _put(self, path: str, text: str, mode: str) -> None:
        self._cluster.root(f"cat >{path} && chmod {mode} {path}", text)
