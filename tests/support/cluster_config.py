"""The configuration for the test cluster: one definition for `./dev cluster config` and the tests.

Standard library only: `./dev` runs it before any virtual environment exists.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

Config = dict[str, Any]


def cluster_config(home: Path, port: int) -> Config:
    """Settings for a cluster whose SSH port is `port`; `home` holds key, known_hosts and local data."""
    return {
        "app": {
            "name": "mqi-hpc",
            "environment": "demo",
            "site": "demo-cluster",
            "state_file": str(home / "state" / "mqi.sqlite"),
            "log_file": str(home / "state" / "mqi.log"),
        },
        "paths": {
            "local_logdata": str(home / "cases"),
            "remote_workspace": "/home/mqi/mqi-workspace",
            "local_results": str(home / "results"),
        },
        "ssh": {
            "host": "127.0.0.1",
            "port": port,
            "username": "mqi",
            "key_file": str(home / "id_ed25519"),
            "known_hosts": str(home / "known_hosts"),
            "connection_pool_size": 3,
        },
        "resources": {"max_concurrent_jobs": 10, "gpu_count": 8, "min_disk_space_gb": 1},
        "processing": {
            "scan_interval_seconds": 5,
            "poll_min_seconds": 1,
            "poll_max_seconds": 5,
            "t_settle_seconds": 10,
            "t_lag_seconds": 30,
            "debounce_seconds": 5,
            "submit_timeout_seconds": 60,
        },
        "slurm": {
            "partition": "gpu",
            "gres": "gpu:1",
            "account": "mqi",
            "stages": {"interpret": {"partition": "cpu"}, "convert": {"partition": "cpu"}},
        },
        # A quarter of the default grid: a demonstration should not wait for bytes.
        "moqui": {
            "grid": {"size": [100, 100, 400], "spacing": [2, 2, 1], "position": [-100, -100, -380]},
        },
        "stages": {"python": "/usr/bin/python3", "engine": ["/opt/mqi-engine/tps_env"]},
    }


def merged(base: Config, overrides: Config) -> Config:
    """`base` with `overrides` laid over it, section by section; a None removes the key."""
    result = dict(base)
    for key, value in overrides.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def to_yaml(config: Config, indent: str = "") -> str:
    """YAML of nested mappings; scalars and lists are written as JSON, which is YAML too."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:\n{to_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def write_config(path: Path, config: Config) -> Path:
    """Write `config` to `path`, readable by its owner only, in one step."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.chmod(0o600)
    fresh.write_text(to_yaml(config), encoding="utf-8")
    return fresh.replace(path)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    write_config(where / "config.yaml", cluster_config(where, int(sys.argv[2])))
