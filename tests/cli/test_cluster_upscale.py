"""Requests that fail before a cluster is needed; `tests/cluster` runs whole jobs."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import fields

import pytest

from cabm.cli.cluster_upscale import upscale_on_cluster
from cabm.cli.upscale import upscale
from cabm.upscaling.request import UpscaleRequest
from tests.cli.helpers import check_refusal, save


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none", "-o", "{tmp}/out"], "{tmp}/none: no such folder"),
        (["{tmp}/a.png", "-o", "{tmp}/out"], "is a file; name its folder"),
        (["{tmp}", "-o", "{tmp}/a.png"], "{tmp}/a.png: is a file, not a folder"),
        (["{tmp}", "-o", "ftp://host/x"], "ftp:// cannot be read; give a folder or s3://"),
        (["{tmp}", "-o", "{tmp}/out", "--all-frames"], "--all-frames: add --format tiff, webp or png"),
        (["{tmp}", "-o", "{tmp}/out", "--tile", "2"], "tiles of 2 pixels that overlap by 6"),
        (["{tmp}", "-o", "{tmp}/out", "--scale", "4"], "upscales x2, not x4; name a model of that scale"),
    ],
)
def test_a_bad_request_is_one_clear_line(cabm, tmp_path, model, arguments, message):
    save(tmp_path / "a.png")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    check_refusal(cabm("cluster", "upscale", *given, "-m", model), message.format(tmp=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("command", [upscale, upscale_on_cluster])
def test_every_field_of_a_request_is_an_option_of_both_commands(command):
    names = {field.name for field in fields(UpscaleRequest)} - {"inputs", "output"}
    assert names <= inspect.signature(command).parameters.keys()


@pytest.mark.parametrize("arguments", [["{tmp}"], ["{tmp}", "{tmp}", "-o", "{tmp}/out"]])
def test_it_needs_one_source_and_one_output(cabm, tmp_path, arguments):
    code, out, err = cabm("cluster", "upscale", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_without_ray_one_line_says_how_to_install_it(cabm, tmp_path, model, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", {**os.environ})  # undo the variables that are set for Ray
    code, out, err = cabm("cluster", "upscale", tmp_path, "-o", tmp_path / "out", "-m", model)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("cabm: a cluster needs Ray Data")
    assert 'pip install "cabm[ray]"' in err
