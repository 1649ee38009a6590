from __future__ import annotations

import copy
import os
import threading
import time
from pathlib import Path

import pytest

from cabm.cluster.job import open_store
from cabm.cluster.local_store import LocalStore
from cabm.cluster.s3_store import S3Store
from cabm.cluster.stores import Entries
from cabm.errors import InputError


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "place"))


def write(store: LocalStore, name: str, content: bytes = b"new", job: str = "job") -> None:
    with store.new_file(name, job) as path:
        path.write_bytes(content)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_lists_its_own_files_and_folders(store, tmp_path):
    assert store.entries("") == Entries((), ())
    for name in ("a.png", "sub/b ü.png", "sub/deep/c.png"):
        write(store, name)
    (tmp_path / "place" / "link").symlink_to(tmp_path / "place" / "sub")
    assert store.entries("") == Entries(("a.png",), ("sub",))
    assert store.entries("sub") == Entries(("b ü.png",), ("deep",))
    assert store.entries("nowhere") == Entries((), ())


def test_a_new_file_appears_when_it_is_complete(store, tmp_path):
    with store.new_file("sub/a.png", "job") as path:
        path.write_bytes(b"half")
        assert not store.has("sub/a.png")
        path.write_bytes(b"whole")
    assert (tmp_path / "place/sub/a.png").read_bytes() == b"whole"
    with store.local_copy("sub/a.png", "job") as path:
        assert path.read_bytes() == b"whole"


def test_a_failed_write_leaves_nothing_and_replaces_nothing(store, tmp_path):
    write(store, "a.png", b"old")
    with pytest.raises(ZeroDivisionError), store.new_file("a.png", "job") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert files(tmp_path) == ["place/a.png"]
    assert (tmp_path / "place/a.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    "name", ["../a.png", "b/../../a.png", "/tmp/a.png", "b//a.png", "./a.png", "a\0.png"]
)
def test_names_from_another_store_cannot_leave_the_folder(store, tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a file in this folder"):
        write(store, name)
    assert files(tmp_path) == []


def test_files_of_killed_workers_are_removed_and_those_of_running_jobs_kept(store, tmp_path):
    place = tmp_path / "place"
    for name in (".cabm-mine/x/half.png", ".cabm-live/x/half.png", ".cabm-dead/x/half.png", "a.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    for path in (place / ".cabm-dead").rglob("*"), [place / ".cabm-dead"]:
        for old in path:
            os.utime(old, (time.time() - 7200,) * 2)
    assert store.entries("") == Entries(("a.png",), ())
    store.clean("mine")
    assert files(place) == [".cabm-live/x/half.png", "a.png"]


def test_a_store_knows_whether_it_is_inside_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("in/out").within(open_store(str(tmp_path / "in"))) == "out"
    assert open_store("in/.out").within(open_store("in")) == ".out"
    assert open_store("in").within(open_store("in")) == ""
    assert open_store("input").within(open_store("in")) is None
    assert open_store("s3://b/in/out").within(open_store("s3://b/in/")) == "out"
    assert open_store("s3://b/in").within(open_store("s3://b")) == "in"
    assert open_store("s3://b/input").within(open_store("s3://b/in")) is None
    assert open_store("s3://b/in").within(open_store(str(tmp_path))) is None
    assert open_store(str(tmp_path)).within(open_store("s3://b")) is None


def test_a_bucket_is_sent_without_its_connection():
    store = S3Store("s3://bucket/folder/")
    vars(store)["_files"] = threading.Lock()  # like a connection, it cannot be copied
    arrived = copy.copy(store)
    assert arrived.address("a/b.png") == "s3://bucket/folder/a/b.png"
    assert "_files" not in vars(arrived)


@pytest.mark.parametrize(
    ("place", "message"), [("s3://", "names no bucket"), ("ftp://host/x", "ftp:// cannot be read")]
)
def test_other_places_are_refused(place, message):
    with pytest.raises(InputError, match=message):
        open_store(place)


def test_a_source_must_exist(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="no such folder"):
        LocalStore(str(tmp_path / "none")).check_exists()
    with pytest.raises(InputError, match="is a file; name its folder"):
        LocalStore(str(tmp_path / "a.png")).check_exists()
    LocalStore(str(tmp_path)).check_exists()


def test_results_need_a_writable_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    LocalStore(str(tmp_path / "new" / "folder")).check_writable()
    with pytest.raises(InputError, match="is a file, not a folder"):
        LocalStore(str(tmp_path / "a.png")).check_writable()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="is not writable; choose another folder with -o"):
        LocalStore(str(tmp_path)).check_writable()
