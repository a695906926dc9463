"""DDPM (Ho et al. 2020): the state dicts of its published weights, in the layout of diffusers, -> our U-Net's.

The original TensorFlow weights are known under these names too, transposed to (output, input, height, width). Old files
call the attention's maps query, key, value, proj_attn; newer ones to_q, to_k, to_v, to_out.0. Ours joins the first
three.
"""

import re

import torch

BLOCK = r"(down|up)_blocks\.(\d+)\."
RENAMES = [  # theirs -> ours, each applied where it is found
    (r"^time_embedding\.linear_1\.", "time_dense0."),
    (r"^time_embedding\.linear_2\.", "time_dense1."),
    (r"^conv_norm_out\.", "norm_out."),
    (rf"^{BLOCK}resnets\.(\d+)\.", r"\1.\2.blocks.\3."),
    (rf"^{BLOCK}attentions\.(\d+)\.", r"\1.\2.blocks.\3.attention."),
    (rf"^{BLOCK}(?:down|up)samplers\.0\.", r"\1.\2.resample."),
    (r"^mid_block\.resnets\.(\d+)\.", r"middle.\1."),
    (r"^mid_block\.attentions\.0\.", "middle.0.attention."),
    (r"\.time_emb_proj\.", ".time."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".out."),
    (r"\.(?:query|to_q)\.", ".q."),
    (r"\.(?:key|to_k)\.", ".k."),
    (r"\.(?:value|to_v)\.", ".v."),
]
# What makes a UNet2DModel of diffusers the network of DDPM, and what a config means that leaves one of them out.
REQUIRED = {
    "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "attention_head_dim": None,
    "act_fn": "silu", "mid_block_scale_factor": 1, "center_input_sample": False, "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default", "num_class_embeds": None,
}  # fmt: skip
DEFAULTS = REQUIRED | {
    "freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1, "norm_eps": 1e-5, "attention_head_dim": 8,
}  # fmt: skip


# Linear betas, T = 1000, eps prediction, time 0 .. 999
MODEL, TRAINED = "ddpm_cifar10", {"schedule": ("linear", {"steps": 1000}), "time": "index"}
RELEASED = {
    "ddpm_cifar10": TRAINED | {"shape": (3, 32, 32)},
    "ddpm_lsun256": TRAINED | {"shape": (3, 256, 256)},
}


def convert(state, arguments=None):
    """The state dict of our U-Net from that of a UNet2DModel: {name: tensor} -> {name: tensor}."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    result = {}
    for name, tensor in renamed.items():
        parts = [re.sub(r"\.[qkv]\.(weight|bias)$", rf".{letter}.\1", name) for letter in "qkv"]
        if parts[0] == parts[1]:
            result[name] = tensor
        elif name == parts[0]:  # q, k, v one below the other are one linear map
            joined = [renamed[part] for part in parts if part in renamed]
            result[name.replace(".q.", ".qkv.")] = torch.cat(joined)
    return result


def arguments(config):
    """The arguments of our U-Net from the config of a UNet2DModel, or of the original (with its `diffusers_config`).

    Raises ValueError if the config is that of another network.
    """
    config = DEFAULTS | config.get("diffusers_config", config)
    for key, value in REQUIRED.items():
        if config[key] != value:
            raise ValueError(
                f"{key}={config[key]!r}: this UNet2DModel is not the network of DDPM, which has {value!r}. Its weights "
                "would give wrong pictures here; look for a family in minidiff/official that fits."
            )
    widths, size = config["block_out_channels"], config["sample_size"]
    attends = ["Attn" in kind for kind in config["down_block_types"]]
    if attends != ["Attn" in kind for kind in reversed(config["up_block_types"])]:
        raise ValueError(f"up_block_types={config['up_block_types']!r} must have attention where the way down has it.")
    return dict(
        image_size=size, in_channels=config["in_channels"], out_channels=config["out_channels"], ch=widths[0],
        ch_mult=[width // widths[0] for width in widths], num_res_blocks=config["layers_per_block"],
        attn_resolutions=[size // 2**level for level, attended in enumerate(attends) if attended],
        num_groups=config.get("norm_num_groups", 32), dropout=0.0,
    )  # fmt: skip
