from __future__ import annotations

import json

from tests.upscaling.helpers import tiny_model


def test_a_model_is_described(cabm, tmp_path):
    model = tiny_model(tmp_path / "m", bypass=60.0)
    code, out, _ = cabm("model", "show", model)
    assert code == 0
    words = ("edsr x2", "cabm", "[4, 6, 8]", "parameters", "edge peak below 60", "FAB 8.00: 4 at 8 bits")
    assert all(word in out for word in words), out
    described = json.loads(cabm("model", "show", model, "--json")[1])
    assert described["weights_sha256"] in out
    assert described["table_sha256"] in out
    assert described["provenance"] == {"stage": "test", "epochs": 0}
    assert "stage      test" in out


def test_a_model_without_a_table_is_described(cabm, tmp_path):
    code, out, _ = cabm("model", "show", tiny_model(tmp_path / "m", "float"))
    assert code == 0
    assert "precision  float\n" in out


def test_a_missing_model_is_one_line(cabm, tmp_path):
    code, _, err = cabm("model", "show", tmp_path / "none")
    assert code == 1
    assert "no such model directory" in err
    assert len(err.splitlines()) == 1
