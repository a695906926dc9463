"""DiT (Peebles and Xie 2023): the state dicts of its official code and published weights -> our DiT's.

The published files are bare state dicts; those of the training script are dicts with the averaged weights under "ema".
"""

import re

import torch

from minidiff.layers import sincos_positions

RENAMES = [  # theirs -> ours, each applied where it is found
    (r"^x_embedder\.proj\.", "patch_embed."),
    (r"^t_embedder\.mlp\.", "time_embed."),
    (r"^y_embedder\.embedding_table\.", "label_embed."),
    (r"^final_layer\.adaLN_modulation\.1\.", "final_layer.modulation."),
]
MODULATION = re.compile(r"^blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)$")
# The official constructor's arguments, with its defaults.
DEFAULTS = dict(
    input_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0,
    class_dropout_prob=0.1, num_classes=1000, learn_sigma=True,
)  # fmt: skip
SAME = ("patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_classes", "learn_sigma")

# One of our names, and for each of them whose weights were published what they were trained with
MODEL = "dit_xl_2"
TRAINED = {"schedule": ("linear", {"steps": 1000}), "time": "index", "learned_range": True, "latents": 0.18215}
RELEASED = {"dit_xl_2": TRAINED, "dit_xl_2_512": TRAINED}


def convert(state, arguments=None):
    """The state dict of our DiT from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network; from them come the fixed positions of a file that does not hold them.
    """
    state = state.get("ema", state)
    result, modulations = {}, {"weight": {}, "bias": {}}
    for name, tensor in state.items():
        if found := MODULATION.match(name):
            modulations[found[2]][int(found[1])] = tensor
            continue
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        result[name] = tensor
    for kind, blocks in modulations.items():  # one below the other: ours is one map for all blocks
        if blocks:
            result[f"modulation.linear.{kind}"] = torch.cat([blocks[i] for i in sorted(blocks)])
    if arguments and "pos_embed" not in result:
        grid = arguments["img_size"] // arguments["patch_size"]
        result["pos_embed"] = sincos_positions(arguments["hidden_size"], grid, grid)[None]
    return result


def arguments(config):
    """The arguments of our DiT from those of the official constructor; what is left out has its default there.

    Raises ValueError for an argument that our network has no equal of.
    """
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of the official DiT that ours knows; leave them out")
    config = DEFAULTS | config
    return {
        "img_size": config["input_size"],
        **{key: config[key] for key in SAME},
        "null_label": config["class_dropout_prob"] > 0,
        "conditioning": "adaln_zero",
    }
