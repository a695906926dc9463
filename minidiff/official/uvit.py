"""U-ViT (Bao et al. 2023): the state dicts of its official code and published weights -> our U-ViT's.

The published files are bare state dicts, already averaged. Theirs has no null text; ours keeps one, zeros at first.
"""

import re

import torch

RENAMES = [  # theirs -> ours, each applied where it is found
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^label_emb\.", "label_embed."),
    (r"^context_embed\.", "text_embed."),
    (r"^decoder_pred\.", "head.linear."),
    (r"^final_layer\.", "head.conv."),
]
SAME = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "mlp_time_embed", "conv")
RENAMED = {"in_chans": "in_channels", "clip_dim": "text_dim", "num_clip_token": "num_text_tokens"}
OURS = ("num_classes", "skip")  # said in another way
# What changes nothing, and what a config must say if it says it at all.
IGNORED = ("use_checkpoint", "name")
REQUIRED = {"qk_scale": None}
DEFAULTS = dict(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, in_channels=3)
# What each published file was trained with, in pixels or on scaled latents. All predict eps. The two ImageNet sizes at
# one resolution differ: L in continuous time, H on a discrete table.
MODEL = "uvit_cifar10"
VP = {"schedule": ("linear", {"steps": None}), "time": "999t"}
SD = {"schedule": ("scaled_linear", {}), "time": "index_from_1"}
RELEASED = {
    "uvit_cifar10": VP, "uvit_celeba64": VP, "uvit_imagenet64_m": VP, "uvit_imagenet64_l": VP,
    "uvit_imagenet256_l": VP | {"latents": 0.18215}, "uvit_imagenet256_h": SD | {"latents": 0.18215},
    "uvit_imagenet512_l": VP | {"latents": 0.18215}, "uvit_imagenet512_h": SD | {"latents": 0.18215},
    "uvit_coco": SD | {"latents": 0.23010}, "uvit_coco_deep": SD | {"latents": 0.23010},  # from the latents' spread
}  # fmt: skip


def convert(state, arguments=None):
    """The state dict of our U-ViT from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network; one with text also gets its `null_text`, zeros.
    """
    result = {}
    for name, tensor in state.items():
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        result[name] = tensor
    if arguments and arguments.get("text_dim"):
        result.setdefault("null_text", torch.zeros(arguments["num_text_tokens"], arguments["text_dim"]))
    return result


def arguments(config):
    """The arguments of our U-ViT from those of the official constructor (both its classes: with `clip_dim` for text).

    Their num_classes is the number of rows of the label table. 1000 rows are the classes of ImageNet (their models
    without guidance); of any other number, 1001 in the published models, the last one means 'no label'.
    Raises ValueError for an argument that our network has no equal of.
    """
    config = dict(config)
    for key, value in REQUIRED.items():
        if config.pop(key, value) != value:
            raise ValueError(f"{key} of the official U-ViT must be {value}: ours has no other")
    unknown = sorted(set(config) - {*SAME, *RENAMED, *OURS, *IGNORED})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of the official U-ViT that ours knows; leave them out")
    rows = config.get("num_classes", -1)
    config["depth"] = config.get("depth", DEFAULTS["depth"]) // 2 * 2  # one block more, whether it is odd or even
    return {
        **DEFAULTS,
        **{key: config[key] for key in SAME if key in config},
        **{ours: config[theirs] for theirs, ours in RENAMED.items() if theirs in config},
        "num_classes": max(0, rows if rows == 1000 else rows - 1),
        "null_label": rows != 1000,
        "skip": "concat" if config.get("skip", True) else "none",
    }
