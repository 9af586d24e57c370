"""The route to the login node, from the settings and OpenSSH's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqi_hpc.core.errors import ConfigurationError
from mqi_hpc.infrastructure.config.models import SSHConfig
from mqi_hpc.infrastructure.connection.route import Route, resolve


def route(tmp_path: Path, text: str = "", **settings: object) -> Route:
    path = tmp_path / "config"
    path.write_text(text)
    return resolve(SSHConfig.model_validate({"host": "login", "config_file": str(path), **settings}))


def test_without_openssh_configuration_settings_and_defaults_stand(tmp_path: Path) -> None:
    config = SSHConfig.model_validate({"host": "login", "config_file": str(tmp_path / "none")})
    found = resolve(config)
    assert (found.hostname, found.port, found.username) == ("login", 22, config.local_user())
    assert found.known_as == "login"
    assert (found.use_agent, found.look_for_keys, found.key_files) == (True, True, ())
    assert str(found) == f"{config.local_user()}@login:22"


def test_openssh_configuration_fills_what_settings_leave_open(tmp_path: Path) -> None:
    key = tmp_path / "id_site"
    key.touch()
    found = route(
        tmp_path,
        f"Host login\n HostName login1.site.example\n Port 2222\n User mqi\n IdentityFile {key}\n"
        f" IdentityFile {tmp_path}/missing\n IdentitiesOnly yes\n ProxyCommand nc %h %p\n",
    )
    assert (found.hostname, found.port, found.username) == ("login1.site.example", 2222, "mqi")
    assert found.known_as == "[login1.site.example]:2222"
    assert (found.use_agent, found.look_for_keys, found.key_files) == (False, False, (key,))
    assert found.proxy_command == "nc login1.site.example 2222"


def test_settings_go_before_openssh_configuration(tmp_path: Path) -> None:
    text = "Host login\n Port 2222\n User other\n IdentityFile /etc/hostname\n HostKeyAlias site\n"
    found = route(tmp_path, text, port=23, username="mqi", key_file="/keys/mine")
    assert (found.port, found.username, found.known_as) == (23, "mqi", "site")
    # One key is named, so no other is offered.
    assert (found.key_files, found.use_agent, found.look_for_keys) == ((Path("/keys/mine"),), False, False)


def test_jumps_are_resolved_each_by_its_own_block(tmp_path: Path) -> None:
    text = (
        "Host login\n ProxyJump far,me@near:2200\nHost far\n HostName far.example\n ProxyJump farther\n"
        "Host near\n ProxyJump ignored\n ProxyCommand nc %h %p\nHost *\n User mqi\n"
    )
    found = route(tmp_path, text)
    assert [str(jump) for jump in found.jumps] == ["mqi@farther:22", "mqi@far.example:22", "me@near:2200"]
    assert found.proxy_command is None


@pytest.mark.parametrize("jump", ["ssh://me@[::1]:2200/", "me@[::1]:2200"])
def test_jumps_may_be_addresses(tmp_path: Path, jump: str) -> None:
    (found,) = route(tmp_path, f"Host login\n ProxyJump {jump}\n").jumps
    assert (found.hostname, found.port, found.username) == ("::1", 2200, "me")


def test_proxy_jump_none_is_none(tmp_path: Path) -> None:
    assert route(tmp_path, "Host login\n ProxyJump none\nHost *\n ProxyJump gate\n").jumps == ()


def test_included_files_count_and_do_not_leak_their_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("Host login\n Port 2201\n")
    (tmp_path / "b.conf").write_text("Host other\n User wrong\n")
    found = route(tmp_path, f'Include "{tmp_path}/*.conf"\nUser mqi\n')
    assert (found.port, found.username) == (2201, "mqi")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Host login\n Include more\n", "Include within a Host"),
        ("Host login\n Port ssh\n", "Port 'ssh' should be a number"),
        ("Host login\n Port 99999\n", "Port '99999' should be a number"),
        ("Host login\n ProxyJump login\n", "circle"),
        ("Host login\n ProxyJump a@b@c:x\n", "should be"),
        ("rubbish\n", "cannot be read as an OpenSSH configuration"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        route(tmp_path, text)
    assert caught.value.where == str(tmp_path / "config")


def test_included_names_are_relative_to_the_ssh_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh" / "conf.d").mkdir(parents=True)
    (tmp_path / ".ssh" / "conf.d" / "site").write_text("Host login\n Port 2201\n")
    assert route(tmp_path, "Include conf.d/* ~/.ssh/none\n").port == 2201


def test_a_rule_that_fails_when_it_is_applied_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(*_: object) -> None:
        raise RuntimeError("the program of Match exec failed")

    monkeypatch.setattr("paramiko.SSHConfig.lookup", lookup)
    with pytest.raises(ConfigurationError, match=r"cannot be applied to host login: the program of Match"):
        route(tmp_path, "Match exec something\n User x\n")


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="deep"):
        route(tmp_path, f"Include {tmp_path}/config\n")


def test_a_file_of_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        resolve(SSHConfig.model_validate({"host": "login", "config_file": str(tmp_path / "config")}))


def test_no_host_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"ssh\.host"):
        resolve(SSHConfig())
