"""Identity and lock where something is amiss on the disk: said in words, nothing made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqi_hpc.controllers.lifecycle_manager import LifecycleManager
from mqi_hpc.core.errors import StateError
from mqi_hpc.infrastructure.state import SqliteStateManager, load_or_create_instance, write_instance
from mqi_hpc.infrastructure.state.instance import instance_file
from tests.support.world import Clock


def test_no_second_identity_is_made_for_a_store_that_has_lost_its_own(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    own = load_or_create_instance(state)
    SqliteStateManager(state, instance=own.id, secret=own.secret, clock=Clock()).close()
    lost = instance_file(state).rename(tmp_path / "backup")
    with pytest.raises(StateError, match=r"instance file is not.*backup"):
        load_or_create_instance(state)
    assert not instance_file(state).exists()
    lost.rename(instance_file(state))
    assert load_or_create_instance(state) == own


def test_an_empty_state_file_is_no_store_yet(tmp_path: Path) -> None:
    (tmp_path / "mqi.sqlite").touch()
    assert load_or_create_instance(tmp_path / "mqi.sqlite").id


def test_bytes_that_are_no_text_are_a_damaged_identity(tmp_path: Path) -> None:
    path = instance_file(tmp_path / "mqi.sqlite")
    path.touch(mode=0o600)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(StateError, match=r"damaged.*backup"):
        load_or_create_instance(tmp_path / "mqi.sqlite")


SECRET = bytes(range(32))


def test_an_identity_is_given_back_once_and_no_other_after_it(tmp_path: Path) -> None:
    state = tmp_path / "new" / "mqi.json"
    given = write_instance(state, "abc123", SECRET)
    assert load_or_create_instance(state) == given == write_instance(state, "abc123", SECRET)
    assert (given.id, given.secret) == ("abc123", SECRET)
    path = instance_file(state)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    for identity, secret in (("abc124", SECRET), ("abc123", SECRET[::-1])):
        with pytest.raises(StateError, match=r"instance abc123 is here already, and it is another"):
            write_instance(state, identity, secret)
    assert path.read_bytes() == before
    assert SECRET.hex() not in repr(given)


@pytest.mark.parametrize(
    ("identity", "secret"),
    [("", SECRET), ("1bcdef", SECRET), ("abc12", SECRET), ("Abc123", SECRET), ("abc123\n", SECRET),
     ("abc123", b""), ("abc123", SECRET[1:]), ("abc123", SECRET + b"x")],
)  # fmt: skip
def test_what_is_no_identity_is_not_written(tmp_path: Path, identity: str, secret: bytes) -> None:
    with pytest.raises(StateError, match=r"this is no identity.*a secret 32 bytes"):
        write_instance(tmp_path / "mqi.sqlite", identity, secret)
    assert list(tmp_path.iterdir()) == []


def test_no_identity_is_given_to_a_store_that_has_lost_its_own(tmp_path: Path) -> None:
    state = tmp_path / "mqi.sqlite"
    SqliteStateManager(state, instance="abc123", secret=SECRET, clock=Clock()).close()
    with pytest.raises(StateError, match=r"instance file is not.*backup"):
        write_instance(state, "abc123", SECRET)


def test_an_identity_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"the instance file cannot be used.*app\.state_file"):
        write_instance(tmp_path / "file" / "mqi.sqlite", "abc123", SECRET)


def test_a_lock_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"the lock cannot be taken.*app\.state_file"):
        LifecycleManager(tmp_path / "file" / "mqi.sqlite").acquire_lock()
    state = tmp_path / "mqi.sqlite"
    holder = tmp_path / "mqi.sqlite.lock.holder"
    holder.mkdir()
    with pytest.raises(StateError, match="the lock cannot be taken"):
        LifecycleManager(state).acquire_lock()
    # What failed half way holds nothing.
    holder.rmdir()
    ours = LifecycleManager(state)
    assert ours.acquire_lock()
    ours.release_lock()
