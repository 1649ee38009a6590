"""Params: every illegal value is refused in one line that names its key."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from pydantic import BaseModel

from cabm.errors import InputError
from cabm.machine.cpu import cpu_threads
from cabm.models import BACKBONES
from cabm.project.params import Params, flat_texts, load_params
from cabm.project.sections import ModelSettings
from cabm.project.yaml_file import read_yaml
from tests.conftest import REPOSITORY

INTEGERS = (
    "runtime.threads",
    "tracking.log_every",
    "full_precision.steps",
    "full_precision.batch_size",
    "full_precision.patch",
    "full_precision.validate_every",
    "full_precision.seed",
    "pams.calibration_batches",
    "cadyq.steps",
    "cabm.batch_size",
    "edge_to_bit.patch",
    "edge_to_bit.stride",
    "evaluate.max_whole_pixels",
    "model.scale",
    "prepare.max_pixels",
    "prepare.sampling.patch",
)
NUMBERS = (
    "runtime.checkpoint_seconds",
    "full_precision.learning_rate",
    "full_precision.ema_decay",
    "full_precision.schedule.warmup",
    "full_precision.schedule.final",
    "pams.alpha_learning_rate",
    "pams.kd_feature",
    "pams.kd_output",
    "cabm.kd_blocks",
    "cadyq.selector_learning_rate",
    "cadyq.w_bit",
    "cadyq.w_bit_per_1000",
    "edge_to_bit.fab_cap",
    "edge_to_bit.bypass.max_loss_db",
    "edge_to_bit.bypass.max_tile_loss_db",
    "model.options.edsr.num_features",
    "prepare.sampling.portion",
)
SWITCHES = ("quantization.quantize_ends", "tracking.enabled", "pams.collapse_tail", "evaluate.whole_image")
NAN, INF = float("nan"), float("inf")

BAD_VALUES = [
    *((key, value) for key in INTEGERS for value in (-1, 1.5, NAN, INF, "many", True, None, [3], {"a": 3})),
    *((key, value) for key in NUMBERS for value in (-0.1, NAN, INF, -INF, "much", [0.1], {"a": 1})),
    *((key, value) for key in SWITCHES for value in (2, "perhaps", None, [], NAN)),
    ("model.name", 4),
    ("model.scale", 1),
    ("model.scale", 5),
    ("model.options", {"edsr": 3}),
    ("model.options.edsr.num_blocks", "yes"),
    ("model.options.edsr.num_blocks", 0),
    ("quantization.search_space", [8, 6, 4]),
    ("quantization.search_space", [4, 4, 8]),
    ("quantization.search_space", []),
    ("quantization.search_space", [1, 8]),
    ("quantization.search_space", [0]),
    ("quantization.search_space", [0, 4, 8]),
    ("quantization.search_space", [4, 0]),
    ("quantization.search_space", [False, 4]),
    ("quantization.search_space", [4, 9]),
    ("quantization.search_space", [4, 6.5]),
    ("quantization.search_space", [4, NAN]),
    ("quantization.search_space", 8),
    ("quantization.search_space", "4, 6, 8"),
    ("quantization.weight_bits", 1),
    ("quantization.weight_bits", 16),
    ("quantization.weight_bits", "like the activation"),
    ("quantization.weight_bits", True),
    ("runtime.device", "tpu"),
    ("runtime.precision", "fp16"),
    ("tracking.experiment", ""),
    ("prepare.train", []),
    ("prepare.train", "sample"),
    ("prepare.test", []),
    ("prepare.validation", {"hold_out": 0}),
    ("prepare.validation", {"hold_out": True}),
    ("prepare.validation", 3),
    ("prepare.sampling.kind", "clever"),
    ("prepare.sampling.variant", "best"),
    ("prepare.sampling.portion", 0),
    ("prepare.sampling.portion", 1.1),
    ("prepare.sampling.patch", 7),
    ("full_precision.learning_rate", 0),
    ("full_precision.learning_rate", 1.1),
    ("full_precision.batch_size", 0),
    ("full_precision.patch", 7),
    ("full_precision.ema_decay", 1),
    ("full_precision.schedule.kind", "linear"),
    ("full_precision.schedule.warmup", 1),
    ("full_precision.schedule.halve_at", [0.5, 1.5]),
    ("full_precision.schedule.final", 1.5),
    ("full_precision.seed", 2**63),
    ("pams.calibration", "guess"),
    ("edge_to_bit.strategy", "highest"),
    ("edge_to_bit.fab_cap", 0),
    ("edge_to_bit.fab_cap", 9),
    ("edge_to_bit.stride", 97),
    ("evaluate.stride", 97),
]


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """The content of params.yaml with all defaults."""
    return load_params(REPOSITORY / "params.yaml").model_dump(mode="json")


@pytest.fixture(scope="module")
def content(full: dict[str, Any]) -> dict[str, Any]:
    """The settings without defaults alone, which are faster to read several hundred times."""

    def required(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
        fields = {name: field for name, field in model.model_fields.items() if field.is_required()}
        return {
            name: required(field.annotation, values[name])
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            else values[name]
            for name, field in fields.items()
        }

    return required(Params, full)


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *sections, name = key.split(".")
    result = inner = copy.deepcopy(content)
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return result


def save(folder: Path, content: Any) -> Path:
    path = folder / "params.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def refused(folder: Path, content: Any) -> str:
    path = save(folder, content)
    with pytest.raises(InputError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_defaults_may_be_written_out(tmp_path, full):
    assert load_params(save(tmp_path, full)) == load_params(REPOSITORY / "params.yaml")


@pytest.mark.parametrize("widths", [[4, 6, 8], [8], [2], [2, 3, 4, 5, 6, 7, 8]])
def test_search_spaces(tmp_path, content, widths):
    path = save(tmp_path, changed(content, "quantization.search_space", widths))
    assert load_params(path).quantization.search_space == tuple(widths)


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_bad_values_are_refused(tmp_path, content, key, value):
    assert key in refused(tmp_path, changed(content, key, value))


def sections(model: dict[str, Any], where: str = "") -> list[str]:
    found = [where]
    for key, value in model.items():
        if isinstance(value, dict) and (where, key) != ("model.", "options"):
            found += sections(value, f"{where}{key}.")
    return found


def test_unknown_keys_are_refused_in_every_section(tmp_path, full, content):
    places = sections(full)
    assert len(places) > 12
    for where in places:
        message = refused(tmp_path, changed(content, f"{where}bach_size", 16))
        assert f"{where}bach_size: Extra inputs are not permitted (found '16')" in message
    assert "prepare.train.0.pat" in refused(
        tmp_path, changed(content, "prepare.train", [{"source": "sample", "pat": 1}])
    )


@pytest.mark.parametrize("key", ["full_precision", "pams", "cadyq", "cabm", "prepare", "cadyq.steps"])
def test_settings_without_a_default_are_required(tmp_path, content, key):
    *places, name = key.split(".")
    inner = incomplete = copy.deepcopy(content)
    for section in places:
        inner = inner[section]
    del inner[name]
    assert f"{key}: Field required" in refused(tmp_path, incomplete)


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ({"source": "internet"}, "prepare.train.0"),
        ({"path": "images"}, "prepare.train.0"),
        ({"source": "folder"}, "prepare.train.0.path"),
        ({"source": "folder", "path": 3}, "prepare.train.0.path"),
        ({"source": "folder", "path": "a", "recursive": 7}, "prepare.train.0.recursive"),
        ({"source": "folder", "path": "a", "halve": True, "low_resolution": "b"}, "halve changes"),
        ({"source": "div2k", "root": "a", "first": 0}, "prepare.train.0.first"),
        ({"source": "div2k", "root": "a", "first": 20, "last": 10}, "prepare.train.0"),
        ({"source": "benchmark", "root": "a", "name": "Set5"}, "prepare.train.0"),
    ],
)
def test_bad_sources_are_refused(tmp_path, content, source, where):
    message = refused(tmp_path, changed(content, "prepare.train", [source]))
    assert where in message
    assert "prepare.validation" in refused(tmp_path, changed(content, "prepare.validation", source))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"source": "sample"}, {"source": "sample"}], "two sets are named 'sample'"),
        ([{"source": "folder", "path": "."}], "'' cannot be the name of a set"),
        ([{"source": "folder", "path": "a", "name": "../b"}], "'../b' cannot be the name of a set"),
        ([{"source": "benchmark", "root": "a", "name": ".."}], "'..' cannot be the name of a set"),
        ([{"source": "benchmark", "root": "a", "name": "x\\y"}], "cannot be the name of a set"),
        ([{"source": "folder", "path": "a", "name": "x\ny"}], "cannot be the name of a set"),
    ],
)
def test_names_of_test_sets_are_unique_and_legal(tmp_path, content, sources, message):
    found = refused(tmp_path, changed(content, "prepare.test", sources))
    assert message in found and "test" in found


def test_small_numbers_may_be_written_with_an_exponent(tmp_path, content):
    for text in ("2e-4", "2.0e-4", "0.0002"):  # YAML 1.1 reads the first as text
        written = yaml.safe_dump(changed(content, "full_precision.learning_rate", 0.0625))
        params = written.replace("learning_rate: 0.0625", f"learning_rate: {text}")
        assert load_params(save(tmp_path, params)).full_precision.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sections"),
        ("- a\n- b\n", "expected sections"),
        ("model", "expected sections"),
        ("model: [1, 2\n", "not valid YAML"),
        ("model: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("model:\n\tname: edsr\n", "not valid YAML"),
        ("1: 2\n", "prepare: Field required"),
        ("when: 2001-99-99\n", "not valid YAML"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    assert message in refused(tmp_path, text)


def test_duplicate_keys_are_refused(tmp_path):
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    assert "duplicate key cadyq" in refused(tmp_path, text + "\ncadyq: {steps: 3}\n")
    assert "duplicate key name" in refused(
        tmp_path, text.replace("  name: edsr", "  name: idn\n  name: edsr")
    )


def test_anchors_may_share_and_override(tmp_path, content):
    text = yaml.safe_dump({key: value for key, value in content.items() if key not in ("pams", "cabm")})
    training = "{steps: 10, learning_rate: 0.1, alpha_learning_rate: 0.1}"
    text += f"pams: &pams {training}\ncabm: {{<<: *pams, steps: 20}}\n"
    params = load_params(save(tmp_path, text))
    assert (params.pams.steps, params.cabm.steps, params.cabm.learning_rate) == (10, 20, 0.1)


@pytest.mark.parametrize("section", ["edge_to_bit", "evaluate"])
@pytest.mark.parametrize(("old", "new"), [("patch", "tile"), ("step", "stride")])
def test_an_old_key_is_refused_with_its_new_name(tmp_path, content, section, old, new):
    content = copy.deepcopy(content) | {section: {old: 48}}
    with pytest.raises(InputError, match=rf"{section}\.{old} is now {section}\.{new}"):
        load_params(save(tmp_path, yaml.safe_dump(content)))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml: no such file"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_params(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_params(path)


def test_params_cannot_be_changed_later():
    params = load_params(REPOSITORY / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.model.scale = 2
    assert isinstance(params, Params)


def test_runtime_gives_device_and_type(monkeypatch):
    runtime = load_params(REPOSITORY / "params.yaml").runtime
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.torch_device() == torch.device("cpu")
    with pytest.raises(InputError, match=r"runtime\.device is cuda"):
        runtime.model_copy(update={"device": "cuda"}).torch_device()
    assert runtime.model_copy(update={"precision": "fp32"}).autocast() is None
    assert runtime.model_copy(update={"precision": "bf16"}).autocast() is torch.bfloat16
    assert cpu_threads(runtime.threads) >= 1
    assert cpu_threads(3) == 3


def test_params_get_readable_names_and_texts() -> None:
    params = {"cadyq": {"lr": 1e-4, "search_space": [4, 6, 8], "loss": {"w_bit": 0.5}}, "seed": 1}
    params |= {"name": "edsr", "init_from": None, "augment": True, "empty": {}, "path": Path("a/b")}
    assert flat_texts(params) == {
        "cadyq.lr": "0.0001",
        "cadyq.search_space": "[4, 6, 8]",
        "cadyq.loss.w_bit": "0.5",
        "seed": "1",
        "name": "edsr",
        "init_from": "null",
        "augment": "true",
        "empty": "{}",
        "path": '"a/b"',
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "name: EDSR",
            r"model\.name: Input should be 'edsr', .* \(found 'EDSR'\)",
        ),
        (
            "options: {EDSR: {num_blocks: 2}}",
            "model.options.EDSR: the backbones are edsr, srresnet",
        ),
        ("options: {edsr: {res_scale: many}}", "edsr.res_scale: give a number"),
        ("options: {edsr: {num_features: 1e-06}}", "edsr.num_features: give a whole number"),
        ("options: {edsr: {num_blocks: true}}", "edsr.num_blocks: give a whole number"),
        ("options: {edsr: {replicate_tail: 1}}", "edsr.replicate_tail: give true or false"),
        ("options: {edsr: {x: 3}}", "model.options.edsr.x: the options are num_features, num_blocks"),
        ("options: {carn: {num_blocks: 3}}", "model.options.carn.num_blocks: the options are num_features"),
    ],
)
def test_a_wrong_model_is_refused_with_the_params(tmp_path, content, change, message):
    content = {key: value for key, value in content.items() if key != "model"}
    with pytest.raises(InputError, match=message):
        load_params(save(tmp_path, yaml.safe_dump(content) + f"model: {{{change}}}\n"))


def test_the_backbones_of_params_are_those_of_the_package():
    assert set(get_args(ModelSettings.model_fields["name"].annotation)) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_option_of_a_backbone_is_taken_and_no_other(name):
    values = {"int": 1, "float": 0.5, "bool": True}
    arguments = dict(inspect.signature(BACKBONES[name]).parameters)
    del arguments["scale"], arguments["precision"]
    for option, argument in arguments.items():
        value = values[argument.annotation]
        assert ModelSettings(options={name: {option: value}}).options[name] == {option: value}
        for other in values.values():
            if not isinstance(other, type(value)) and (type(value), other) != (float, 1):
                with pytest.raises(ValueError, match=f"{option}: give"):
                    ModelSettings(options={name: {option: other}})
    with pytest.raises(ValueError, match="the options are") as refusal:
        ModelSettings(options={name: {"depth": 1}})
    assert all(option in str(refusal.value) for option in arguments)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-06", 1e-6),
        ("1E-6", 1e-6),
        ("+1e-6", 1e-6),
        (".1e-5", 1e-6),
        ("0.000001", 1e-6),
        ("1.e-6", 1e-6),
    ],
)
def test_numbers_are_spelled_as_in_yaml_1_2(tmp_path, content, text, value):
    content = {key: value for key, value in content.items() if key != "model"}
    path = save(
        tmp_path, yaml.safe_dump(content) + f"model: {{options: {{edsr: {{res_scale: {text}}}}}}}\n"
    )
    assert load_params(path).model.options["edsr"]["res_scale"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("True", True),
    ],
)
def test_other_spellings_of_yaml_1_1_are_not_read(tmp_path, text, value):
    class Content(BaseModel):
        x: Any

    assert read_yaml(save(tmp_path, f"x: {text}\n"), Content).x == value
