"""What only SRResNet has: batch norm that folds, a shared PReLU, the released graph."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from cabm.quant import Quantized
from tests.models.helpers import calibrate, image, randomise, small_model


def folded(model):
    """Batch norm into the convolution before it: w' = w s, b' = bias - mean s, s = gain / deviation."""
    model = copy.deepcopy(model)
    pairs = [(model.body_end, model.body_end_bn)]
    pairs += [pair for block in model.body for pair in ((block.conv1, block.bn1), (block.conv2, block.bn2))]
    with torch.no_grad():
        for conv, norm in pairs:
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight.mul_(gain.view(-1, 1, 1, 1))
            conv.bias = nn.Parameter(norm.bias - norm.running_mean * gain)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1)
            norm.bias.zero_()
    return model


def test_batch_norm_folds_into_the_convolution_before_it():
    model = randomise(small_model("srresnet", scale=3)).eval()
    x = image(1, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(x).sr, model(x).sr, rtol=1e-4, atol=1e-3)


def test_head_and_blocks_share_one_prelu():
    model = small_model("srresnet", scale=4)
    slopes = [name for name, value in model.named_parameters() if value.shape == (1,)]
    assert slopes == ["prelu.weight", "upsample_prelu.0.weight", "upsample_prelu.1.weight"]


def note(read, name, _, inputs):
    read[name] = inputs[0]


def test_only_the_released_graph_reads_the_input_before_quantization():
    for release_graph in (False, True):
        model = small_model("srresnet", kind="pams", options={"release_graph": release_graph}).eval()
        x = image(1, 7, 8)
        calibrate(model, x)
        read = {}
        for name in ("conv1", "conv2"):
            conv = getattr(model.body[0], name)
            conv.register_forward_pre_hook(partial(note, read, name))
        with torch.no_grad():
            model(x)
        assert isinstance(read["conv1"], Quantized) != release_graph
        assert isinstance(read["conv2"], Quantized)


def test_both_graphs_are_one_in_full_precision():
    x = image(1, 7, 8)
    with torch.no_grad():
        ours, theirs = (
            small_model("srresnet", options={"release_graph": flag}).eval()(x).sr for flag in (False, True)
        )
    assert torch.equal(ours, theirs)
