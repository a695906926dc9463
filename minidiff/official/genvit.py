"""GenViT and HybViT (Yang et al. 2022): the state dicts of their official code -> our GenViT's.

The published files hold the whole diffusion process under "model_state_dict": the network is `denoise_fn.`, behind it
`module.` if it was trained on several GPUs; the rest are tables of the schedule.
"""

import re

RENAMES = [  # theirs -> ours, each applied where it is found
    (r"^pos_embedding$", "pos_embed"),
    (r"^time_mlp\.1\.", "time_embed.0."),
    (r"^time_mlp\.3\.", "time_embed.2."),
    (r"^to_patch_embedding\.1\.", "patch_embed.0."),
    (r"^to_patch_embedding\.merging\.1\.", "patch_embed.0."),  # shifted patches: a norm, then the linear map
    (r"^to_patch_embedding\.merging\.2\.", "patch_embed.1."),
    (r"^recon_head\.0\.", "head."),
    (r"^mlp_head\.", "classifier."),
    (r"^transformer\.time_layers\.(\d+)\.1\.", r"modulations.\1."),
    (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1."),
    (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"blocks.\1.norm2."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.scale$", r"blocks.\1.attn.scale"),
    (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"blocks.\1.mlp.fc2."),
]
ARGUMENTS = {  # theirs -> ours
    "img_size": "img_size", "patch_size": "patch_size", "channels": "in_channels", "dim": "embed_dim",
    "depth": "depth", "heads": "num_heads", "dim_head": "dim_head", "mlp_dim_ratio": "mlp_ratio",
    "ffn_time": "ffn_time", "is_SPT": "spt", "is_LSA": "lsa", "num_classes": "head_classes",
}  # fmt: skip

# One of our names, and for each of them whose weights were published what they were trained with
MODEL, TRAINED = "genvit_cifar10", {"schedule": ("cosine", {"steps": 1000}), "time": "index"}
RELEASED = {"genvit_cifar10": TRAINED, "genvit_celeba128": TRAINED}


def convert(state, arguments=None):
    """The state dict of our GenViT from an official one: {name: tensor} -> {name: tensor}."""
    state = state.get("model_state_dict", state)
    if any(name.startswith("denoise_fn.") for name in state):  # all else belongs to the process
        state = {name.removeprefix("denoise_fn."): t for name, t in state.items() if name.startswith("denoise_fn.")}
    result = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        result[name] = tensor
    return result


def arguments(config):
    """The arguments of our GenViT from those of the official constructor; what is left out is as for CIFAR-10.

    Raises ValueError for an argument that our network has no equal of.
    """
    unknown = sorted(set(config) - set(ARGUMENTS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of the official GenViT that ours knows; leave them out")
    defaults = dict(head_classes=10, num_classes=0)
    return defaults | {ours: config[theirs] for theirs, ours in ARGUMENTS.items() if theirs in config}
