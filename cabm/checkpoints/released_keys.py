"""Key names of published checkpoints, as data: our name -> the name in the release.

Placeholders: ``{i}``, ``{j}`` and ``{a}`` are numbers, ``{i+1}`` is the next number, ``{p}`` is the last
part (weight, bias, running_mean ...), ``{end}`` is the number of blocks, ``{scale}`` is the scale. On the
right, ``{k}`` counts the widths of the search space from 1; these tensors are joined into one. Several
names on the right mean that a release registered one tensor several times, or that releases differ.

Sources: EDSR-PyTorch, CARN-pytorch, IDN-pytorch, and the released PAMS, CADyQ and CABM models.
"""

from __future__ import annotations

KeyMap = dict[str, str | tuple[str, ...]]

EDSR_ENDS: KeyMap = {
    "head.{p}": "head.0.{p}",
    "body_end.{p}": "body.{end}.{p}",
    "upsample.0.{p}": "tail.0.0.{p}",
    "upsample.1.{p}": "tail.0.2.{p}",
    "tail.{p}": "tail.1.{p}",
}
EDSR_FLOAT: KeyMap = EDSR_ENDS | {
    "body.{i}.conv1.{p}": "body.{i}.body.0.{p}",
    "body.{i}.conv2.{p}": "body.{i}.body.2.{p}",
}
EDSR_PAMS: KeyMap = EDSR_ENDS | {
    "body.{i}.act1.alpha": "body.{i}.quant_act1.alpha",
    "body.{i}.conv1.{p}": "body.{i}.body.0.{p}",
    "body.{i}.act2.alpha": ("body.{i}.quant_act2.alpha", "body.{i}.body.2.alpha"),
    "body.{i}.conv2.{p}": "body.{i}.body.3.{p}",
    "body.{i}.act3.alpha": "body.{i}.quant_act3.alpha",
}
# the CADyQ release registers the first quantizer in the sequence, too
EDSR_PAMS_OF_CADYQ: KeyMap = EDSR_PAMS | {
    "body.{i}.act1.alpha": ("body.{i}.quant_act1.alpha", "body.{i}.body.0.alpha"),
    "body.{i}.conv1.{p}": "body.{i}.body.1.{p}",
    "body.{i}.act2.alpha": ("body.{i}.quant_act2.alpha", "body.{i}.body.3.alpha"),
    "body.{i}.conv2.{p}": "body.{i}.body.4.{p}",
}
EDSR_SELECTED: KeyMap = EDSR_ENDS | {
    "body.{i}.act1.alpha": "body.{i}.bitsel1.quant_bit{k}.alpha",
    "body.{i}.act1.selector.{p}": "body.{i}.bitsel1.net_small.0.{p}",
    "body.{i}.conv1.{p}": "body.{i}.body.0.{p}",
    "body.{i}.act2.alpha": "body.{i}.body.2.quant_bit{k}.alpha",
    "body.{i}.act2.selector.{p}": "body.{i}.body.2.net_small.0.{p}",
    "body.{i}.conv2.{p}": "body.{i}.body.3.{p}",
    "body.{i}.act3.alpha": "body.{i}.quant_act3.alpha",
}

SRRESNET_FLOAT: KeyMap = {
    "head.{p}": "head.0.{p}",
    "prelu.weight": ("head.1.weight", "body.{i}.act.weight"),
    "body.{i}.conv{a}.weight": "body.{i}.conv{a}.weight",
    "body.{i}.bn{a}.{p}": "body.{i}.bn{a}.{p}",
    "body_end.{p}": "body.{end}.{p}",
    "body_end_bn.{p}": "body.{end+1}.{p}",
    "upsample.0.{p}": "tail.0.0.{p}",
    "upsample_prelu.0.{p}": "tail.0.2.{p}",
    "upsample.1.{p}": "tail.0.3.{p}",
    "upsample_prelu.1.{p}": "tail.0.5.{p}",
    "tail.{p}": "tail.1.{p}",
}
SRRESNET_PAMS: KeyMap = SRRESNET_FLOAT | {"body.{i}.act{a}.alpha": "body.{i}.quant_act{a}.alpha"}
SRRESNET_SELECTED: KeyMap = SRRESNET_FLOAT | {
    "body.{i}.act{a}.alpha": "body.{i}.classify{a}.quant_bit{k}.alpha",
    "body.{i}.act{a}.selector.{p}": "body.{i}.classify{a}.net_small.0.{p}",
}

IDN_ENDS: KeyMap = {"body.{i}.compression.{p}": "dblocks.{i}.compression.{p}", "tail.{p}": "deconv.{p}"}
IDN_FLOAT: KeyMap = IDN_ENDS | {
    "entry1.{p}": "fblock.module.0.{p}",
    "entry2.{p}": "fblock.module.2.{p}",
    "body.{i}.conv1.{p}": "dblocks.{i}.enhancement_top.0.{p}",
    "body.{i}.conv2.{p}": "dblocks.{i}.enhancement_top.2.{p}",
    "body.{i}.conv3.{p}": "dblocks.{i}.enhancement_top.4.{p}",
    "body.{i}.conv4.{p}": "dblocks.{i}.enhancement_bottom.0.{p}",
    "body.{i}.conv5.{p}": "dblocks.{i}.enhancement_bottom.2.{p}",
    "body.{i}.conv6.{p}": "dblocks.{i}.enhancement_bottom.4.{p}",
}
IDN_QUANTIZED: KeyMap = IDN_ENDS | {
    "entry1_act.alpha": ("fblock.quant_actf1.alpha", "fblock.module.0.alpha"),
    "entry1.{p}": "fblock.module.1.{p}",
    "entry2_act.alpha": ("fblock.quant_actf2.alpha", "fblock.module.3.alpha"),
    "entry2.{p}": "fblock.module.4.{p}",
    "body.{i}.conv1.{p}": "dblocks.{i}.enhancement_top.1.{p}",
    "body.{i}.conv2.{p}": "dblocks.{i}.enhancement_top.4.{p}",
    "body.{i}.conv3.{p}": "dblocks.{i}.enhancement_top.7.{p}",
    "body.{i}.conv4.{p}": "dblocks.{i}.enhancement_bottom.1.{p}",
    "body.{i}.conv5.{p}": "dblocks.{i}.enhancement_bottom.4.{p}",
    "body.{i}.conv6.{p}": "dblocks.{i}.enhancement_bottom.7.{p}",
}
IDN_POSITIONS = {  # act number -> position in the release
    1: "dblocks.{i}.enhancement_top.0",
    2: "dblocks.{i}.enhancement_top.3",
    3: "dblocks.{i}.enhancement_top.6",
    4: "dblocks.{i}.enhancement_bottom.0",
    5: "dblocks.{i}.enhancement_bottom.3",
    6: "dblocks.{i}.enhancement_bottom.6",
}
IDN_PAMS: KeyMap = IDN_QUANTIZED | {
    f"body.{{i}}.act{number}.alpha": (f"dblocks.{{i}}.quant_act{number}.alpha", f"{position}.alpha")
    for number, position in IDN_POSITIONS.items()
}
IDN_SELECTED: KeyMap = (
    IDN_QUANTIZED
    | {
        f"body.{{i}}.act{n}.alpha": f"{position}.quant_bit{{k}}.alpha"
        for n, position in IDN_POSITIONS.items()
    }
    | {
        f"body.{{i}}.act{n}.selector.{{p}}": f"{position}.net_small.0.{{p}}"
        for n, position in IDN_POSITIONS.items()
    }
)

CARN_ENDS: KeyMap = {
    "head.{p}": "entry.{p}",
    "body.blocks.{i}.fusion.{j}.{p}": "b{i+1}.c{j+1}.body.0.{p}",
    "body.fusion.{i}.{p}": "c{i+1}.body.0.{p}",
    "upsample.0.{p}": ("upsample.up{scale}.body.0.{p}", "upsample.up.body.0.{p}"),
    "upsample.1.{p}": ("upsample.up{scale}.body.3.{p}", "upsample.up.body.3.{p}"),
    "tail.{p}": "exit.{p}",
}
CARN_FLOAT: KeyMap = CARN_ENDS | {
    "body.blocks.{i}.blocks.{j}.conv1.{p}": "b{i+1}.b{j+1}.body.0.{p}",
    "body.blocks.{i}.blocks.{j}.conv2.{p}": "b{i+1}.b{j+1}.body.2.{p}",
}
CARN_QUANTIZED: KeyMap = CARN_ENDS | {
    "body.blocks.{i}.blocks.{j}.conv1.{p}": "b{i+1}.b{j+1}.body.1.{p}",
    "body.blocks.{i}.blocks.{j}.conv2.{p}": "b{i+1}.b{j+1}.body.4.{p}",
}
CARN_PAMS: KeyMap = CARN_QUANTIZED | {
    "body.blocks.{i}.blocks.{j}.act1.alpha": (
        "b{i+1}.b{j+1}.body.0.alpha",
        "b{i+1}.b{j+1}.quant_act1.alpha",
    ),
    "body.blocks.{i}.blocks.{j}.act2.alpha": (
        "b{i+1}.b{j+1}.body.3.alpha",
        "b{i+1}.b{j+1}.quant_act2.alpha",
    ),
}
CARN_SELECTED: KeyMap = CARN_QUANTIZED | {
    "body.blocks.{i}.blocks.{j}.act1.alpha": "b{i+1}.b{j+1}.body.0.quant_bit{k}.alpha",
    "body.blocks.{i}.blocks.{j}.act1.selector.{p}": "b{i+1}.b{j+1}.body.0.net_small.0.{p}",
    "body.blocks.{i}.blocks.{j}.act2.alpha": "b{i+1}.b{j+1}.body.3.quant_bit{k}.alpha",
    "body.blocks.{i}.blocks.{j}.act2.selector.{p}": "b{i+1}.b{j+1}.body.3.net_small.0.{p}",
}

# the alternatives per backbone and kind; the one with the fewest problems is used
KEY_MAPS: dict[tuple[str, str], tuple[KeyMap, ...]] = {
    ("edsr", "float"): (EDSR_FLOAT,),
    ("edsr", "pams"): (EDSR_PAMS, EDSR_PAMS_OF_CADYQ),
    ("edsr", "cadyq"): (EDSR_SELECTED,),
    ("edsr", "cabm"): (EDSR_SELECTED,),
    ("srresnet", "float"): (SRRESNET_FLOAT,),
    ("srresnet", "pams"): (SRRESNET_PAMS,),
    ("srresnet", "cadyq"): (SRRESNET_SELECTED,),
    ("srresnet", "cabm"): (SRRESNET_SELECTED,),
    ("idn", "float"): (IDN_FLOAT,),
    ("idn", "pams"): (IDN_PAMS,),
    ("idn", "cadyq"): (IDN_SELECTED,),
    ("idn", "cabm"): (IDN_SELECTED,),
    ("carn", "float"): (CARN_FLOAT,),
    ("carn", "pams"): (CARN_PAMS,),
    ("carn", "cadyq"): (CARN_SELECTED,),
    ("carn", "cabm"): (CARN_SELECTED,),
}

# keys that number the blocks, from 0
NUM_BLOCKS = {
    "edsr": r"body\.(\d+)\.(body|quant_act\d|bitsel1)\..+",
    "srresnet": r"body\.(\d+)\.(conv|bn|act|quant_act|classify)\d*\..+",
    "idn": r"dblocks\.(\d+)\..+",
}
# option -> a key, and the axes of that tensor whose sizes, with these signs, add up to the option
SIZES: dict[str, dict[str, tuple[str, dict[int, int]]]] = {
    "edsr": {"num_features": ("head.0.weight", {0: 1})},
    "srresnet": {"num_features": ("head.0.weight", {0: 1})},
    "idn": {
        "num_features": ("dblocks.0.compression.weight", {0: 1}),
        "num_distilled": ("dblocks.0.compression.weight", {1: 1, 0: -1}),
    },
    "carn": {"num_features": ("entry.weight", {0: 1})},
}

# keys to ignore: calibration statistics, selectors of a model with a table, SRResNet's mean shifts (the
# release never applies them), CARN's heads of the other scales
IGNORED = {
    (None, None): r"(.+\.)?max_val",
    (None, "cabm"): r".+\.net_small\.0\.(weight|bias)",
    ("srresnet", None): r"(sub|add)_mean\.(weight|bias)",
    ("carn", None): r"upsample\.up(?!{scale})[234]\.body\.\d\.(weight|bias)",
}
# fixed 1x1 convolutions that subtract and add the mean colour: name, and range of the pixels
MEAN_SHIFTS = {"edsr": ("{sign}_mean", 255.0), "carn": ("{sign}_mean.shifter", 1.0)}
# a bias before a batch norm is subtracted from the running mean: the same function, fewer parameters
ABSORBED = {"body.{i}.bn{a}.running_mean": "body.{i}.conv{a}.bias"}
