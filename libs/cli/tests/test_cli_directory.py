"""The data directory: locked, of one kind, and typed errors for what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal_cli.directory import CLUSTER_OBJECTS, EMBEDDED_OBJECTS, lock_directory
from shoal_core.errors import Corrupt, FailedPrecondition, InvalidArgument, NewerFormat


def test_made_and_locked_once(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path / "a" / "b", EMBEDDED_OBJECTS)
    with pytest.raises(FailedPrecondition, match="in use by process"):
        lock_directory(tmp_path / "a" / "b", EMBEDDED_OBJECTS)
    lock.release()
    lock_directory(tmp_path / "a" / "b", EMBEDDED_OBJECTS).release()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=r"path: .* cannot hold the data: not a directory"):
        lock_directory(tmp_path / name, EMBEDDED_OBJECTS)


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(InvalidArgument, match="cannot hold the data"):
        lock_directory(Path("/proc/shoal"), CLUSTER_OBJECTS)


@pytest.mark.parametrize(("mine", "other"), [(EMBEDDED_OBJECTS, CLUSTER_OBJECTS), (CLUSTER_OBJECTS, EMBEDDED_OBJECTS)])
def test_data_of_the_other_kind_of_system_is_refused(tmp_path: Path, mine: str, other: str) -> None:
    (tmp_path / other).mkdir()
    for _ in range(2):  # and it is not left locked
        with pytest.raises(FailedPrecondition, match=f"^path: {tmp_path} holds the data of"):
            lock_directory(tmp_path, mine)
    lock_directory(tmp_path, other).release()


def test_a_directory_says_its_format_and_one_of_before_that_is_marked(tmp_path: Path) -> None:
    (tmp_path / EMBEDDED_OBJECTS).mkdir()
    for _ in range(2):
        lock_directory(tmp_path, EMBEDDED_OBJECTS).release()
        assert json.loads((tmp_path / "FORMAT").read_text())["format"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FORMAT", "LOCK", EMBEDDED_OBJECTS]


def test_a_directory_of_a_newer_release_is_refused_with_which_to_use(tmp_path: Path) -> None:
    text = json.dumps({"format": 2, "release": "7.1.0", "later": True})
    (tmp_path / "FORMAT").write_text(text)
    for _ in range(2):  # and it is not left locked
        with pytest.raises(NewerFormat, match=r"made by Shoal 7.1.0 with format 2, .* use Shoal 7.1.0 or later"):
            lock_directory(tmp_path, EMBEDDED_OBJECTS)
    assert (tmp_path / "FORMAT").read_text() == text


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"format": "x", "release": "1"}'])
def test_a_format_that_cannot_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "FORMAT").write_text(text)
    with pytest.raises(Corrupt, match="restore it"):
        lock_directory(tmp_path, CLUSTER_OBJECTS)
