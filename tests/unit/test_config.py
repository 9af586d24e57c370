from __future__ import annotations

from pathlib import Path

import pytest

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config import AppConfig, ConfigLoader

SPECIFIED = """\
app:
  name: "MQI Communicator"
  version: "2.0.0"
  environment: "production"
paths:
  local_logdata: "/path/to/local/data"
  remote_workspace: "/path/to/remote/workspace"
ssh:
  host: "hpc.example.com"
  port: 22
  username: "user"
  key_file: "~/.ssh/id_rsa"
  connection_pool_size: 5
resources:
  max_concurrent_jobs: 10
  gpu_count: 8
  min_disk_space_gb: 100
processing:
  scan_interval_seconds: 60
  retry_policy:
    max_attempts: 3
    base_delay: 1.0
monitoring:
  metrics_interval_seconds: 30
  health_check_interval_seconds: 60
"""
SMALL = """\
paths: {local_logdata: /data, remote_workspace: /work}
ssh: {host: h}
"""
ROOT = Path(__file__).parents[2]


def load(text: str, tmp_path: Path) -> AppConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return ConfigLoader().load(path)


def refusal(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(text, tmp_path)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_the_specified_file_loads_unchanged(tmp_path: Path) -> None:
    config = load(SPECIFIED, tmp_path)
    assert config.ssh.key_file == Path("~/.ssh/id_rsa").expanduser()
    assert config.ssh.known_hosts == Path("~/.ssh/known_hosts").expanduser()
    assert config.paths.local_logdata == Path("/path/to/local/data")
    assert config.paths.local_results == config.app.state_file.parent / "results"
    assert config.processing.retry_policy.policy().delay(2) == 2.0
    assert config.slurm.stages.beams.time == "01:00:00"
    assert (config.machines["G1"].gantry_number, config.machines["G2"].x_gain) == (1, 0.00726)
    assert config.machines["G1"].dose1_factors["3"] == 2.9787234
    assert config.moqui.grid.size == (200, 200, 400)


def test_the_documented_example_loads_and_shows_every_key(tmp_path: Path) -> None:
    text = (ROOT / "config" / "example.yaml").read_text()
    load(text, tmp_path)

    def keys(model: type) -> set[str]:
        found = set(model.model_fields)
        for info in model.model_fields.values():
            kind = info.annotation
            if hasattr(kind, "model_fields"):
                found |= keys(kind)
        return found

    missing = sorted(key for key in keys(AppConfig) if f"{key}:" not in text)
    assert not missing


def test_every_setting_is_described() -> None:
    def check(model: type) -> None:
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            if hasattr(info.annotation, "model_fields"):
                check(info.annotation)

    check(AppConfig)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    config = load(SMALL, tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.ssh.host = "other"  # type: ignore[misc]


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    config = load(SMALL.replace("/data", "data") + "app: {state_file: s/mqi.sqlite}\n", tmp_path)
    assert config.paths.local_logdata == tmp_path / "data"
    assert config.paths.local_results == tmp_path / "s" / "results"


def test_local_transport_needs_no_host(tmp_path: Path) -> None:
    text = "paths: {local_logdata: /d, remote_workspace: /w}\ntransport: local\n"
    assert load(text, tmp_path).transport == "local"


def test_without_a_host_it_says_so(tmp_path: Path) -> None:
    (line,) = refusal("paths: {local_logdata: /d, remote_workspace: /w}\n", tmp_path)
    assert line.startswith("config.yaml:1: ssh.host: is missing")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("slurm: {partiton: gpu}", "config.yaml:3: slurm.partiton: unknown key; did you mean partition?"),
        ("gpu_count: 4", "config.yaml:3: gpu_count: unknown key; it belongs at resources.gpu_count"),
        ("zebra: 1", "unknown key; known here: app, paths"),
        (
            "resources: {gpu_count: '8'}",
            "resources.gpu_count: '8' is not right: input should be a valid integer",
        ),
        ("resources: {gpu_count: 0}", "greater than or equal to 1"),
        ("resources: 3", "should be a section with the keys max_concurrent_jobs"),
        ("app: {version: 2.0}", 'in "quotes"'),
        ("monitoring: {metrics_interval_seconds: .inf}", "finite"),
        ("processing: {ready: maybe}", "'marker', 'quiet' or 'either'"),
        ("processing: {poll_min_seconds: 200}", "poll_min_seconds should not exceed"),
        ("stages: {engine: []}", "at least 1 item"),
        ("stages: {engine: tps_env}", "should be a valid tuple"),
        ("stages: {require_gpu: yes}", "should be a valid boolean"),
        ("slurm: {partition: 'a b'}", "a name as Slurm knows it"),
        ("slurm: {stages: {beams: {time: soon}}}", "slurm.stages.beams.time: 'soon' is not right"),
        ("slurm: {stages: {beams: {extra: [--hold]}}}", "--hold is set by this program"),
        ("slurm: {stages: {beams: {extra: [--arr=1-9]}}}", "--arr is set by this program"),
        ("slurm: {stages: {beams: {extra: [-p x]}}}", "long option"),
        ('slurm: {comment: "a\\nb"}', "one line"),
        ("machines: {G9: {x_ofset: 1}}", "machines.G9.x_ofset: unknown key; did you mean x_offset?"),
        ("machines: {}", "at least one machine"),
        ("moqui: {grid: {spacing: [2.5, 2, 1]}}", "whole millimetres"),
        ("transport: carrier", "'ssh' or 'local'"),
        ("app: {site: 'a/b'}", "letters, digits"),
    ],
)
def test_refusals_say_where_and_what_would_be_right(extra: str, expected: str, tmp_path: Path) -> None:
    lines = refusal(SMALL + extra + "\n", tmp_path)
    assert expected in "\n".join(lines)
    assert all(line.startswith("config.yaml:3: ") for line in lines)


def test_all_faults_at_once_in_order_of_lines(tmp_path: Path) -> None:
    text = SPECIFIED.replace("port: 22", "prt: 22").replace("gpu_count: 8", "gpu_count: many")
    text = text.replace("  name:", "  name: a\n  name:")
    lines = refusal(text, tmp_path)
    assert [line.split(": ")[:2] for line in lines] == [
        ["config.yaml:1", "app"],
        ["config.yaml:11", "ssh.prt"],
        ["config.yaml:17", "resources.gpu_count"],
    ]
    assert "line 3: name stands here a second time, first on line 2" in lines[0]


@pytest.mark.parametrize("results", ["/data", "/data/out", "/", "/x/../data/y"])
def test_results_and_scanned_folder_stay_apart(results: str, tmp_path: Path) -> None:
    text = SMALL.replace("/work}", f"/work, local_results: {results}}}")
    (line,) = refusal(text, tmp_path)
    assert line.startswith("config.yaml:1: paths.local_results: ")


@pytest.mark.parametrize("folder", ["work", "/", "/a/../b", "/a%j", '"/a\\nb"', "~/work"])
def test_odd_remote_workspaces_are_refused(folder: str, tmp_path: Path) -> None:
    lines = refusal(SMALL.replace("/work", folder), tmp_path)
    assert "paths.remote_workspace" in lines[0]


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "a: &x {b: *x}\n", "? [a]\n: b\n", "\tb: 1\n"])
def test_what_is_no_configuration_is_refused_without_a_traceback(text: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path)[0].startswith("config.yaml")


def test_unquoted_times_stay_text_and_factor_keys_may_be_numbers(tmp_path: Path) -> None:
    machine = "{x_offset: 1, y_offset: 1, x_gain: 1e-2, y_gain: 1, gantry_number: 3, dose1_factors: {2: 1.5}}"
    config = load(
        SMALL + f"slurm: {{stages: {{beams: {{time: 12:30:00}}}}}}\nmachines: {{G3: {machine}}}\n", tmp_path
    )
    assert config.slurm.stages.beams.time == "12:30:00"
    assert config.machines["G3"].dose1_factors == {"2": 1.5}
    assert config.machines["G3"].x_gain == 0.01


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        ConfigLoader().load(tmp_path / "none.yaml")


def test_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        ConfigLoader().load(tmp_path / "c.yaml")
