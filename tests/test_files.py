"""Files and folders are whole or absent; leftovers of killed writers are removed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cabm.errors import InputError
from cabm.files import atomic_directory, atomic_write, read_json, remove_leftovers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a").write_text(text)


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    fill(target, "old")
    (target / "b").touch()
    with atomic_directory(target) as temporary:
        fill(temporary, "new")
        assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]
    assert names(target) == ["a"]
    assert (target / "a").read_text() == "new"


def test_a_writer_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as temporary:
        fill(temporary, "new")
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(InputError, match="is a file; name a folder"), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "precious"


@pytest.fixture
def disk_without_modes(tmp_path: Path) -> Iterator[Path]:
    """A mounted folder on which chmod is refused, as on FAT or NTFS of another owner."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    below, disk = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    disk.mkdir()
    mounted = subprocess.run(
        ["bindfs", "--chmod-deny", str(below), str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"bindfs cannot mount here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def check_writing(folder: Path) -> None:
    with atomic_write(folder / "a.txt") as temporary:
        temporary.write_text("a")
    with atomic_directory(folder / "out") as new:
        (new / "b").write_text("b")
    assert names(folder) == ["a.txt", "out"]
    assert (folder / "a.txt").read_text() == "a" and (folder / "out" / "b").read_text() == "b"


def test_files_are_written_to_a_disk_that_refuses_modes(disk_without_modes: Path) -> None:
    (disk_without_modes / "probe").touch()
    with pytest.raises(PermissionError):
        (disk_without_modes / "probe").chmod(0o600)
    mode = (disk_without_modes / "probe").stat().st_mode
    (disk_without_modes / "probe").unlink()
    check_writing(disk_without_modes)
    assert (disk_without_modes / "a.txt").stat().st_mode == mode


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_flushing_is_skipped_where_the_disk_does_not_know_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    check_writing(tmp_path)


def test_a_disk_that_loses_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error.*a\.txt"), atomic_write(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def refusing(number: int):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def abandon(path: Path, *, directory: bool) -> Path:
    """Leave the temporary files of a writer that is killed before it is done."""
    writer = (atomic_directory if directory else atomic_write)(path)
    temporary = writer.__enter__()
    left = temporary.parent if directory else temporary
    if directory:
        (temporary / "half").touch()
    kept = left.with_name("kept")
    left.rename(kept)  # out of the writer's reach
    writer.gen.close()
    return kept.rename(left)


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("cabm", "cadyq"):
        abandon(tmp_path / name, directory=True)
    abandon(tmp_path / "cabm.json", directory=False)
    fill(tmp_path / "cabm", "whole")
    (tmp_path / ".cabm-notes").touch()
    remove_leftovers(tmp_path / "cabm")
    remove_leftovers(tmp_path / "nowhere" / "cabm")
    left = names(tmp_path)
    assert left[-1] == "cabm"
    assert sum(name.startswith(".cadyq-") for name in left) == 1
    assert sum(name.endswith(".json") for name in left) == 1
    assert ".cabm-notes" in left and len(left) == 4
    remove_leftovers(tmp_path / "cabm.json")
    assert not any(name.endswith(".json") for name in names(tmp_path))


def test_a_name_of_the_greatest_length_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'写' * 82}_x4.png"
    assert len(path.name.encode()) == 253
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        (tmp_path / f"{temporary.stem[:-8]}deadbeef.png").touch()  # what a killed writer leaves
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_may_still_be_written_to_stays(tmp_path: Path) -> None:
    left = abandon(tmp_path / "state.safetensors", directory=False)
    remove_leftovers(tmp_path / "state.safetensors", older_than_s=3600)
    assert left.exists()
    os.utime(left, (time.time() - 7200,) * 2)
    remove_leftovers(tmp_path / "state.safetensors", older_than_s=3600)
    assert not left.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "9" * 5000, '"\\ud800"', '{"\\udfff": 1}', "nul", "\ufeff{}"],
)
def test_what_is_not_json_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_characters_outside_ascii_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["\\ud83d\\ude00", "é"]')
    assert read_json(tmp_path / "a.json") == ["\U0001f600", "é"]
