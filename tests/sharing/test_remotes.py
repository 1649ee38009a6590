"""Two clones share work through remote storage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cabm.checkpoints.model_directory import load_model
from cabm.errors import InputError
from tests.sharing.project import OUTS, Clone, clone_with_cache
from tests.sharing.remotes import Remote, directory_remote, s3_remote, ssh_remote

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Shared:
    """Pushed work: the author's clone and the remote."""

    author: Clone
    remote: Remote


@pytest.fixture(params=["directory", "s3", "ssh"])
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, environment: Mapping[str, str]
) -> Iterator[Remote]:
    folder = tmp_path / "remote"
    folder.mkdir()
    match request.param:
        case "directory":
            made = directory_remote(folder)
        case "s3":
            made = s3_remote(folder, environment)
        case _:
            made = ssh_remote(folder, environment)
    yield made
    made.stop()


@pytest.fixture()
def shared(finished: Clone, remote: Remote, tmp_path: Path) -> Shared:
    """A clone of the finished pipeline, with its remote committed and all outs pushed."""
    author = clone_with_cache(finished, tmp_path / "author").with_environment(**remote.environment)
    author.dvc("remote", "add", "--default", "store", remote.url)
    for key, value in {"verify": "true", **remote.settings}.items():
        author.dvc("remote", "modify", "store", key, value)
    author.commit("Name the remote")
    author.git("tag", "--annotate", "cabm@v0.2.0", "--message", "A model with a remote")
    author.dvc("push", "--run-cache")
    return Shared(author, remote)


def stored_files(author: Clone, out: str) -> dict[str, str]:
    """Return the MD5 of each file in an out."""
    stages = yaml.safe_load((author.root / "dvc.lock").read_text())["stages"]
    (md5,) = [entry["md5"] for stage in stages.values() for entry in stage["outs"] if entry["path"] == out]
    listing = author.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}


def test_a_second_clone_has_nothing_left_to_run(shared: Shared, finished: Clone, tmp_path: Path) -> None:
    author, clone = shared.author, shared.author.clone(tmp_path / "second")
    clone.dvc("pull", "--run-cache")
    output = clone.dvc("repro")
    assert "Running stage" not in output
    assert output.count("didn't change, skipping") == 7
    assert "up to date" in output
    assert "up to date" in clone.dvc("status")
    assert clone.contents(*OUTS) == author.contents(*OUTS) == finished.contents(*OUTS)
    assert (clone.root / "tables" / "edge_to_bit.json").is_file()
    assert clone.git("status", "--porcelain") == ""

    # a single model, without a clone
    for command in ("get", "artifacts get"):
        place = tmp_path / command
        name = "models/cabm" if command == "get" else "cabm"
        clone.dvc(*command.split(), str(author.root), name, "--out", str(place))
        assert sorted(path.name for path in place.iterdir()) == [
            "config.json",
            "edge_to_bit.json",
            "model.safetensors",
        ]
        assert load_model(place).table is not None


def test_a_remote_that_is_down_loses_nothing(shared: Shared, tmp_path: Path) -> None:
    author = shared.author.with_environment(**shared.remote.impatient)
    newcomer = author.clone(tmp_path / "second")
    before = author.contents(*OUTS, ".dvc/cache")
    shared.remote.stop()
    output = newcomer.dvc("pull", fails=True)
    assert "ERROR" in output
    assert shared.remote.down in output.lower()
    assert not (newcomer.root / "models" / "cabm").exists()
    if shared.remote.settings or shared.remote.wrong:  # DVC creates a missing directory
        output = author.dvc("push", fails=True)
        assert "ERROR" in output
        assert shared.remote.down in output.lower()
    assert author.contents(*OUTS, ".dvc/cache") == before
    assert "up to date" in author.dvc("status")


def test_wrong_credentials_lose_nothing(shared: Shared, tmp_path: Path) -> None:
    remote = shared.remote
    if not remote.wrong:
        pytest.skip("a directory has no credentials")
    author = shared.author.with_environment(**remote.wrong)
    newcomer = author.clone(tmp_path / "second")
    before = author.contents(*OUTS, ".dvc/cache")
    for clone, action in ((newcomer, "pull"), (author, "push")):
        output = clone.dvc(action, fails=True)
        assert "ERROR" in output
        assert re.search(remote.denied, output, re.IGNORECASE), output
        assert "Traceback" not in output
    assert author.contents(*OUTS, ".dvc/cache") == before
    assert "up to date" in author.dvc("status")
    assert "fetched" in newcomer.with_environment(**remote.environment).dvc("pull")


def test_an_object_cut_short_is_refused_and_the_old_model_stays(shared: Shared, tmp_path: Path) -> None:
    author, reader = shared.author, shared.author.clone(tmp_path / "second")
    reader.dvc("pull")
    old = reader.contents(*OUTS)

    config = author.root / "models" / "cabm" / "config.json"
    config.write_text(config.read_text().replace("{", "{ ", 1))  # a new version of one file
    author.dvc("commit", "--force", "cabm")
    author.commit("Improve the model")
    author.dvc("push")
    shared.remote.cut(stored_files(author, "models/cabm")["config.json"])

    reader.git("pull", "--quiet")
    output = reader.dvc("pull", fails=True)
    assert "ERROR" in output
    assert "models/cabm" in output
    reader.git("checkout", "--quiet", "HEAD~1")
    reader.dvc("checkout")
    assert "up to date" in reader.dvc("status")
    assert reader.contents(*OUTS) == old


def test_weights_cut_short_are_refused_even_if_dvc_does_not_verify(shared: Shared, tmp_path: Path) -> None:
    """Without ``verify true`` DVC does not check what it pulls."""
    author, reader = shared.author, shared.author.clone(tmp_path / "second")
    shared.remote.cut(stored_files(author, "models/cabm")["model.safetensors"])
    reader.dvc("remote", "modify", "--local", "store", "verify", "false")
    reader.dvc("pull", "models/cabm")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(reader.root / "models" / "cabm")
