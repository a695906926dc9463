"""EDM's port of ADM (Karras et al. 2022): the state dicts of its DhariwalUNet -> our ADM's.

The published edm-imagenet-64x64-cond-adm.pkl is a pickle that brings its code along, which nothing here runs. Open it
with EDM's own code, and save `pickle.load(file)["ema"].state_dict()` with torch.save: that file is read here.
"""

import re

LEAVES = {  # theirs -> ours, inside a block
    "norm0": "norm1", "conv0": "conv1", "affine": "emb", "norm1": "norm2", "conv1": "conv2", "skip": "shortcut",
    "norm2": "attention.norm", "qkv": "attention.qkv", "proj": "attention.out",
}  # fmt: skip
ENDS = {  # and outside
    "map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "map_label": "label_embed", "out_norm": "norm_out",
    "out_conv": "conv_out",
}  # fmt: skip
# The official constructor's arguments, with its defaults, and what a config must say if it says it at all.
DEFAULTS = dict(model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8), dropout=0.10)
SAME = ("in_channels", "out_channels", "model_channels", "channel_mult", "attn_resolutions", "dropout")
OURS = ("img_resolution", "num_blocks", "label_dim")
REQUIRED = {"channel_mult_emb": 4, "augment_dim": 0}
IGNORED = ("label_dropout",)  # conditions are dropped by Diffusion.loss

MODEL = "edm_adm_imagenet64"
RELEASED = {"edm_adm_imagenet64": {"schedule": ("edm", {}), "prediction": "edm", "time": "log_sigma/4"}}


def convert(state, arguments):
    """The state dict of our ADM from one of DhariwalUNet, or of EDMPrecond around it: {name: tensor} -> the same.

    arguments: those of our network. Rows of q, k, v stay as they are: qkv_order="edm" says how they lie.
    """
    result = {}
    for name, tensor in state.items():
        if name.endswith("resample_filter"):  # the mean of four pixels, and each pixel four times
            continue
        entry, _, leaf = name.removeprefix("model.").rpartition(".")
        if entry in ENDS:
            result[f"{ENDS[entry]}.{leaf}"] = tensor
            continue
        if entry.startswith(("enc.", "dec.")):
            part, place, *inner = entry.split(".")
            entry = ".".join([_place(part, place, arguments), *(LEAVES[leaf] for leaf in inner)])
        result[f"{entry}.{leaf}"] = tensor.flatten(1) if ".attention." in entry and tensor.ndim == 4 else tensor
    return result


def _place(part, place, arguments):
    """Where their enc or dec block, such as 32x32_block0, is in ours."""
    size, what, i = re.fullmatch(r"(\d+)x\d+_([a-z]+)(\d*)", place).groups()
    level, levels = (arguments["image_size"] // int(size)).bit_length() - 1, len(arguments["channel_mult"])
    if part == "enc":
        return {
            "conv": "encoder.conv_in", "block": f"encoder.down.{level}.blocks.{i}",
            "down": f"encoder.down.{level - 1}.resample",
        }[what]  # fmt: skip
    stage = levels - 1 - level  # ours go up from the smallest maps
    return {
        "in": f"encoder.middle.{i}", "block": f"up.{stage}.blocks.{i}", "up": f"up.{stage - 1}.resample",
    }[what]  # fmt: skip


def arguments(config):
    """The arguments of our ADM from those of DhariwalUNet; what is left out has its default there.

    Raises ValueError for an argument that our network has no equal of.
    """
    config = DEFAULTS | config
    for key, value in REQUIRED.items():
        if config.pop(key, value) != value:
            raise ValueError(f"{key} of the official DhariwalUNet must be {value}: ours has no other")
    unknown = sorted(set(config) - {*SAME, *OURS, *IGNORED})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of DhariwalUNet that ours knows; leave them out")
    return {
        **{key: config[key] for key in SAME},
        "image_size": config["img_resolution"], "num_res_blocks": config["num_blocks"],
        "num_classes": config.get("label_dim", 0), "one_hot": True, "num_head_channels": 64, "qkv_order": "edm",
        "group_width": 4,
    }  # fmt: skip
