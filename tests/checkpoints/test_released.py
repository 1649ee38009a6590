"""Import of published checkpoints: files, key maps, and error lines."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch

from cabm.checkpoints.released import import_released, read_released_file
from cabm.errors import InputError
from cabm.quant import KINDS
from tests.models.helpers import BACKBONES


def released(golden, backbone, kind):
    prefix = {"float": "fp", "cabm": "cadyq"}.get(kind, kind) + ".state."
    arrays = golden(backbone)
    return {
        key.removeprefix(prefix): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("edsr", {"num_features": 16, "num_blocks": 3, "res_scale": 1.0}),
        ("srresnet", {"num_features": 16, "num_blocks": 3, "release_graph": True}),
        ("idn", {"num_features": 16, "num_blocks": 4, "num_distilled": 4}),
        ("carn", {"num_features": 16}),
    ],
)
def test_width_and_depth_come_from_the_tensor_shapes(golden, backbone, options):
    model = import_released(backbone, "cadyq", released(golden, backbone, "cadyq"), 4)
    assert model.options == options
    assert not model.training


def pytorch_edsr(scale: int, features: int = 6, blocks: int = 2) -> dict[str, torch.Tensor]:
    """Names and shapes of an EDSR-PyTorch file (edsr_baseline_x2, x3, x4)."""
    shapes = {
        "sub_mean.weight": (3, 3, 1, 1),
        "head.0.weight": (features, 3, 3, 3),
        "head.0.bias": (features,),
    }
    for index in range(blocks):
        for position in (0, 2):
            shapes[f"body.{index}.body.{position}.weight"] = (features, features, 3, 3)
            shapes[f"body.{index}.body.{position}.bias"] = (features,)
    shapes |= {f"body.{blocks}.weight": (features, features, 3, 3), f"body.{blocks}.bias": (features,)}
    for position, factor in {2: ((0, 2),), 3: ((0, 3),), 4: ((0, 2), (2, 2))}[scale]:
        shapes[f"tail.0.{position}.weight"] = (features * factor**2, features, 3, 3)
        shapes[f"tail.0.{position}.bias"] = (features * factor**2,)
    shapes |= {"tail.1.weight": (3, features, 3, 3), "tail.1.bias": (3,)}
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040])
    for name, sign in (("sub", -1), ("add", 1)):
        state |= {f"{name}_mean.weight": torch.eye(3).view(3, 3, 1, 1), f"{name}_mean.bias": sign * mean}
    return state


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_pytorch_files_load_at_every_scale(scale):
    state = pytorch_edsr(scale)
    model = import_released("edsr", "float", state, scale, options={"res_scale": 0.1})
    assert torch.equal(model.head.weight, state["head.0.weight"])
    assert torch.equal(model.body[1].conv2.bias, state["body.1.body.2.bias"])
    assert torch.equal(model.body_end.weight, state["body.2.weight"])
    assert torch.equal(model.upsample[-1].weight, state[f"tail.0.{2 if scale == 4 else 0}.weight"])
    assert model.options["res_scale"] == 0.1
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 5, 7)).sr.shape == (1, 3, 5 * scale, 7 * scale)


def test_the_layout_of_the_cadyq_release_loads_too(golden):
    """It registers the first quantizer in the sequence, which shifts the numbers after it."""
    state = released(golden, "edsr", "pams")
    moved = {}
    for key, value in state.items():
        if ".body.0." in key or ".body.3." in key:
            key = key.replace(".body.0.", ".body.1.").replace(".body.3.", ".body.4.")
        elif ".body.2." in key:
            key = key.replace(".body.2.", ".body.3.")
        moved[key] = value
        if ".quant_act1." in key:
            moved[key.replace("quant_act1", "body.0")] = value
    here = import_released("edsr", "pams", state, 4).state_dict()
    there = import_released("edsr", "pams", moved, 4).state_dict()
    assert all(torch.equal(value, there[name]) for name, value in here.items())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", ["float", "cadyq"])
def test_carn_loads_the_head_of_its_scale(golden, scale, kind):
    state = released(golden, "carn", kind)
    model = import_released("carn", kind, state, scale)
    assert torch.equal(model.upsample[0].weight, state[f"upsample.up{scale}.body.0.weight"])
    single = {key.replace(f"up{scale}.", "up."): value for key, value in state.items()}
    single = {
        key: value
        for key, value in single.items()
        if not key.startswith(("upsample.up2", "upsample.up3", "upsample.up4"))
    }
    alone = import_released("carn", kind, single, scale)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_and_unknown_key_is_listed(golden, backbone, kind):
    if (backbone, kind) == ("carn", "pams"):
        pytest.skip("no such checkpoint was released")
    state = released(golden, backbone, kind)
    import_released(backbone, kind, state, 4)
    pattern = {"edsr": "tail.1.weight", "srresnet": "body.4.running_mean", "idn": "deconv.bias"}
    gone = pattern.get(backbone, "c2.body.0.bias")
    del state[gone]
    state |= {"stray.weight": torch.zeros(1), "other": torch.zeros(2)}
    with pytest.raises(InputError) as error:
        import_released(backbone, kind, state, 4)
    message = str(error.value)
    assert f"missing keys {gone}" in message
    assert "unknown keys stray.weight, other" in message
    assert "\n" not in message


def test_a_missing_key_is_named_as_in_the_release(golden):
    for kind, key in (
        ("pams", "body.1.quant_act3.alpha"),
        ("cadyq", "body.2.bitsel1.net_small.0.bias"),
        ("float", "body.0.body.2.bias"),
    ):
        state = released(golden, "edsr", kind)
        del state[key]
        with pytest.raises(InputError, match=f"missing keys {key}$"):
            import_released("edsr", kind, state, 4)


def test_a_missing_width_is_found(golden):
    state = released(golden, "edsr", "cadyq")
    del state["body.1.bitsel1.quant_bit3.alpha"]
    with pytest.raises(InputError, match=r"missing keys body\.1\.bitsel1\.quant_bit3\.alpha"):
        import_released("edsr", "cadyq", state, 4)


def test_a_checkpoint_of_another_kind_is_recognized(golden):
    with pytest.raises(InputError, match="look like those of kind pams"):
        import_released("edsr", "float", released(golden, "edsr", "pams"), 4)
    with pytest.raises(InputError, match="look like those of kind cadyq or cabm"):
        import_released("idn", "pams", released(golden, "idn", "cadyq"), 4)
    with pytest.raises(InputError, match=r"not a float carn checkpoint: missing keys entry\.weight"):
        import_released("carn", "float", released(golden, "edsr", "float"), 4)


def test_a_checkpoint_of_another_scale_is_an_error(golden):
    state = released(golden, "edsr", "float")
    with pytest.raises(InputError, match=r"unknown keys tail\.0\.2\.weight, tail\.0\.2\.bias"):
        import_released("edsr", "float", state, 2)
    with pytest.raises(
        InputError, match=r"tail\.0\.0\.weight is \(24, 6, 3, 3\), expected \(54, 6, 3, 3\)"
    ):
        import_released("edsr", "float", pytorch_edsr(2), 3)
    with pytest.raises(InputError, match="scale must be one of 2, 3, 4"):
        import_released("edsr", "float", state, 5)


def test_a_search_space_of_another_length_is_an_error(golden):
    with pytest.raises(InputError, match=r"3 widths per position, the search space \[4, 8\] has 2"):
        import_released("edsr", "cadyq", released(golden, "edsr", "cadyq"), 4, search_space=(4, 8))


def test_another_pixel_range_is_an_error():
    state = pytorch_edsr(4)
    state["sub_mean.bias"] = state["sub_mean.bias"] / 255
    with pytest.raises(InputError, match=r"sub_mean\.bias .* range of pixels than 0\.\.255"):
        import_released("edsr", "float", state, 4)


def test_copies_of_a_shared_tensor_must_agree(golden):
    state = released(golden, "srresnet", "float")
    state["body.1.act.weight"] = state["body.1.act.weight"] + 1
    with pytest.raises(InputError, match=r"head\.1\.weight and body\.1\.act\.weight should be one tensor"):
        import_released("srresnet", "float", state, 4)


def test_values_that_are_not_finite_are_an_error():
    state = pytorch_edsr(4)
    state["head.0.bias"][0] = torch.nan
    with pytest.raises(InputError, match=r"head.0.bias has values that are not finite"):
        import_released("edsr", "float", state, 4)


@pytest.mark.parametrize(("backbone", "kind"), [("rcan", "float"), ("edsr", "int8")])
def test_unknown_names_are_an_error(backbone, kind):
    with pytest.raises(InputError, match=r"no published checkpoints of (backbone 'rcan'|kind 'int8')"):
        import_released(backbone, kind, {}, 4)


# files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar"])
@pytest.mark.parametrize("wrap", ["plain", "wrapped", "parallel"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_every_form_read_the_same(tmp_path, suffix, wrap, zipped):
    state = pytorch_edsr(2)
    content = state
    if wrap == "parallel":
        content = {f"module.{key}": value for key, value in state.items()}
    if wrap != "plain":
        content = {"epoch": 3, "state_dict": content, "optimizer": {"state": {}, "param_groups": []}}
    path = tmp_path / f"model{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_released_file(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())


class Exploit:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "model.pt"
    torch.save({"state_dict": pytorch_edsr(2), "args": Exploit(marker)}, path)
    with pytest.raises(InputError, match="would run code when loaded"):
        read_released_file(path)
    path.write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(InputError, match="not a PyTorch checkpoint"):
        read_released_file(path)
    assert not marker.exists()


def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(pytorch_edsr(2), buffer)
    return buffer.getvalue()


def foreign_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        checkpoint_bytes()[:1000],
        checkpoint_bytes()[:-100],
        foreign_zip(),
        saved([1, 2]),
        saved({}),
        saved({"epoch": 3}),
        saved({"state_dict": {"a": 1}}),
        saved(torch.zeros(3)),
    ],
    ids=["empty", "text", "head", "truncated", "zip", "list", "nothing", "numbers", "no-tensors", "tensor"],
)
def test_a_file_that_is_no_checkpoint_is_a_one_line_error(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt: ") as error:
        read_released_file(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_released_file(path)
