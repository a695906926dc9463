"""HiT (Zhao et al. 2021): the variables of its TensorFlow checkpoints -> the state dict of our HiTGenerator.

No weights were ever published. Kernels are (input, output) there, those of attention (input, heads, width) and at its
end (heads, width, output); q, k and v are one map here.
"""

import re

import torch

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
RENAMES = [  # theirs -> ours, each applied where it is found
    (r"^dense_layer/layer_with_weights-0/", "dense/"),
    (r"^embedding_layer/layer_with_weights-0/", "latent/dense/"),
    (r"^embedding_layer/layer_with_weights-1/embedding_weight$", "latent/positions"),
    (r"^embedding_layer/layer_with_weights-2/", "latent/norm/"),
    (r"^position_embeddings/(\d+)/embedding_weight$", r"stages/\1/tokens/positions"),
    (r"^blocks/(\d+)/layer_with_weights-0/", r"stages/\1/tokens/cross/"),
    (r"^blocks/(\d+)/layer_with_weights-(\d+)/", lambda found: f"stages/{found[1]}/tokens/blocks/{int(found[2]) - 1}/"),
    (r"^to_rgb_layers/(\d+)/output_layer/layer_with_weights-", r"stages/\1/rgb/"),
    (r"^umsamplings/(\d+)/dense_layer/", r"stages/\1/up/"),
    (r"/attention_layer/(\w+)_dense/", r"/attn/\1/"),
    (r"(/mlp_block)?/mlp_block/layer_with_weights-0/", "/mlp/fc1/"),
    (r"(/mlp_block)?/mlp_block/layer_with_weights-1/", "/mlp/fc2/"),
    (r"(/mlp_block)?/norm_layer/", "/norm2/"),
    (r"/(cross|blocks/\d+)/norm/", r"/\1/norm1/"),
    (r"/(gamma|kernel)$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/moving_mean$", "/running_mean"),
    (r"/moving_variance$", "/running_var"),
]
ARGUMENTS = {  # theirs -> ours
    "num_layers_per_block": "depths", "channel_dim_per_block": "widths", "num_heads_per_block": "num_heads",
    "patch_size_per_block": "block_sizes", "attn_type": "attn_type", "latent_dim": "latent_dim",
    "output_dim": "out_channels", "norm_type": "norm",
}  # fmt: skip
DEFAULTS = dict(initial_patch_size=8, embedding_size=4, activation="gelu (exact)")

# One of our names; nothing was published
MODEL, RELEASED = "hit_128", {}


def convert(state, arguments=None):
    """The state dict of our HiTGenerator from the variables of a checkpoint: {name: tensor} -> {name: tensor}."""
    if any(name.startswith("generator/") for name in state):  # all else belongs to the training
        state = {name.removeprefix("generator/"): t for name, t in state.items() if name.startswith("generator/")}
    result, maps = {}, {}
    for name, tensor in state.items():
        name = name.removesuffix(SUFFIX)
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        name = name.replace("/", ".")
        if name.endswith("running_var"):
            result[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        if found := re.match(r"(.*\.attn)\.(\w+)\.(weight|bias)$", name):
            maps.setdefault(found[1], {})[f"{found[2]}.{found[3]}"] = tensor
        elif name.endswith(".positions") and name.startswith("latent."):
            result[name] = tensor.flatten(0, 1)  # (1, 1, M, dim)
        else:
            result[name] = tensor.T if tensor.ndim == 2 else tensor
    for name, theirs in maps.items():
        fused = "blocks" in name  # tokens that ask each other; those that ask the latent have a map for q alone
        result |= {f"{name}.{key}": tensor for key, tensor in attention(theirs, fused).items()}
    return result


def attention(theirs, fused):
    """The weights of our attention from {"query.weight": tensor, ...}; fused: q, k and v are one map, not only k, v."""
    ours = {"proj.weight": theirs["output.weight"].flatten(0, 1).T, "proj.bias": theirs["output.bias"]}
    flat = {"weight": lambda kernel: kernel.flatten(1).T, "bias": torch.flatten}
    for kind, change in flat.items():
        q, k, v = (change(theirs[f"{part}.{kind}"]) for part in ("query", "key", "value"))
        if fused:
            ours[f"qkv.{kind}"] = torch.cat([q, k, v])
        else:
            ours |= {f"q.{kind}": q, f"kv.{kind}": torch.cat([k, v])}
    return ours


def arguments(config):
    """The arguments of our HiTGenerator from those of the official one; what is left out is as for 128 pixels.

    Raises ValueError for an argument that our network has no equal of.
    """
    unknown = sorted(set(config) - set(ARGUMENTS) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of the official HiT that ours knows; leave them out")
    ours = {ours: config[theirs] for theirs, ours in ARGUMENTS.items() if theirs in config}
    config = DEFAULTS | config
    if config["activation"] != DEFAULTS["activation"]:
        raise ValueError(f"activation={config['activation']!r}: our network has {DEFAULTS['activation']!r} alone")
    if "widths" in ours:
        ours["img_size"] = config["initial_patch_size"] * 2 ** (len(ours["widths"]) - 1)
    return ours | {"latent_tokens": config["embedding_size"] ** 2}
