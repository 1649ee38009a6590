from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cabm.project.paths import project_root
from cabm.tracking.provenance import clone_id, code_tags, params_hash


@pytest.fixture()
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_BASELINE_REV", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "dvc.lock").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "first")
    return tmp_path


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def test_params_hash_ignores_the_order_of_keys_only() -> None:
    assert params_hash({"a": 1, "b": {"c": [4, 6]}}) == params_hash({"b": {"c": [4, 6]}, "a": 1})
    assert params_hash({"a": [4, 6]}) != params_hash({"a": [6, 4]})
    assert params_hash({"a": 1}) != params_hash({"a": "1"})
    assert len(params_hash({})) == 16


def test_code_tags_name_the_commit_and_whether_the_code_differs(repository: Path) -> None:
    head = git("rev-parse", "HEAD").strip()
    assert code_tags() == {"baseline": head, "dirty": "false"}
    (repository / "dvc.lock").write_text("2\n")
    (repository / "new.txt").write_text("untracked\n")
    assert code_tags() == {"baseline": head, "dirty": "false"}
    (repository / "code.py").write_text("2\n")
    assert code_tags() == {"baseline": head, "dirty": "true"}


def test_code_tags_see_the_whole_tree_from_a_folder(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "code.py").write_text("2\n")
    (repository / "dvc.lock").write_text("2\n")
    (repository / "folder").mkdir()
    (repository / "folder" / "dvc.lock").write_text("1\n")
    git("add", "folder")
    monkeypatch.chdir(repository / "folder")
    assert code_tags()["dirty"] == "true"
    (repository / "code.py").write_text("1\n")
    assert code_tags()["dirty"] == "false"


def test_code_tags_take_the_baseline_of_an_experiment(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    assert code_tags()["baseline"] == "abc"


def test_code_tags_are_empty_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    assert code_tags() == {}


def test_project_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = repository / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert project_root() == repository
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert project_root() == Path("/elsewhere")


def test_a_clone_keeps_its_id_and_shares_it_with_nobody(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(lambda _: clone_id(), range(8)))
    (mine,) = ids
    (repository / "deeper").mkdir()
    monkeypatch.chdir(repository / "deeper")
    assert clone_id() == mine
    other = repository / "other"
    other.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(other))
    assert clone_id() != mine
