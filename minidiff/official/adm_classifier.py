"""ADM's noisy classifiers: the state dicts of guided-diffusion's EncoderUNetModel -> our ADMClassifier's."""

import re

from minidiff.official import adm

HEADS = {  # theirs -> ours, by pool
    "attention": [
        (r"^out\.0\.", "norm_out."), (r"^out\.2\.positional_embedding$", "head.pos_embed"),
        (r"^out\.2\.qkv_proj\.", "head.qkv."), (r"^out\.2\.c_proj\.", "head.out."),
    ],
    "adaptive": [(r"^out\.0\.", "norm_out."), (r"^out\.3\.", "head.2.")],
    "spatial": [(r"^out\.", "head.")],
    "spatial_v2": [(r"^out\.", "head.")],
}  # fmt: skip

# What the published ones were trained with: the schedule of the model that they guide
MODEL = "adm_classifier_64"
LINEAR = {"kind": "classifier", "schedule": ("linear", {"steps": 1000}), "time": "index"}
RELEASED = {
    "adm_classifier_64": LINEAR | {"schedule": ("cosine", {"steps": 1000})},
    "adm_classifier_128": LINEAR, "adm_classifier_256": LINEAR, "adm_classifier_512": LINEAR,
}  # fmt: skip


def convert(state, arguments):
    """The state dict of our ADMClassifier from an official one; arguments: those of our network."""
    result = adm.convert({name: tensor for name, tensor in state.items() if not name.startswith("out.")}, arguments)
    for name, tensor in state.items():
        if name.startswith("out."):
            for theirs, ours in HEADS[arguments["pool"]]:
                name = re.sub(theirs, ours, name)
            if name == "head.pos_embed":  # (c, places + 1)
                tensor = tensor.T[None]
            result[name] = tensor.flatten(1) if name.endswith("weight") and tensor.ndim > 2 else tensor
    return result


def arguments(config):
    """The arguments of our ADMClassifier from those of EncoderUNetModel, whose out_channels are the classes.

    Raises ValueError for an argument that our network has no equal of.
    """
    rest = {key: value for key, value in config.items() if key not in ("out_channels", "pool")}
    ours = adm.arguments(rest)
    for key in ("num_classes", "null_label", "super_resolution"):
        if ours.pop(key):
            raise ValueError(f"{key}={config[key]!r}: not an argument of the official classifier; leave it out")
    return ours | {"num_classes": config["out_channels"], "pool": config.get("pool", "adaptive")}
