"""Improved DDPM, ADM and GLIDE: state dicts of improved-diffusion, guided-diffusion and glide-text2im -> our ADM's.

Three codes, one set of names. The published files are bare state dicts, already averaged. Of GLIDE's this reads the
U-Net: its text encoder's output is what the network takes as y (the tokens after the last norm, and the last of them as
`pooled`), and its weights are left out.
"""

import re

LEAVES = [  # theirs -> ours, inside a block
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".emb."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
    (r"\.encoder_kv\.", ".text_kv."),
    (r"\.(?:op|conv)\.(weight|bias)$", r".\1"),  # of a resampling convolution
    (r"^label_emb\.", "label_embed."),
    (r"^transformer_proj\.", "pooled_embed."),
    (r"^out\.0\.", "norm_out."),
    (r"^out\.2\.", "conv_out."),
]
ENTRY = re.compile(r"^(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d)\.)?(?=(\w+))")
ATTENTION = ("norm", "qkv", "proj_out", "encoder_kv")
TEXT_ENCODER = ("transformer.", "token_embedding.", "positional_embedding", "padding_embedding", "final_ln.")

SAME = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "dropout", "num_heads", "resblock_updown")
RENAMED = {"use_scale_shift_norm": "scale_shift_norm", "encoder_channels": "text_dim"}
OURS = ("image_size", "attention_resolutions", "channel_mult", "num_classes", "num_head_channels",
        "use_new_attention_order", "super_resolution", "xf_width")  # said in another way
# What changes nothing here, and what a config must say if it says it at all.
IGNORED = ("use_checkpoint", "use_fp16", "use_new_attention_order", "text_ctx", "xf_layers", "xf_heads", "xf_final_ln",
           "xf_padding", "tokenizer", "cache_text_emb", "n_vocab")
REQUIRED = {"conv_resample": True, "dims": 2, "num_heads_upsample": -1, "xf_ar": 0.0, "share_unemb": False}
DEFAULTS = {"image_size": 64, "in_channels": 3, "dropout": 0.0, "num_heads": 1, "resblock_updown": False,
            "scale_shift_norm": False}  # fmt: skip

# What each was trained with. All learn a range of variances. The two unconditional ones of improved DDPM were fed
# t * 1000 / T.
MODEL = "adm_imagenet64"
LINEAR = {"schedule": ("linear", {"steps": 1000}), "time": "index", "learned_range": True}
COSINE = LINEAR | {"schedule": ("cosine", {"steps": 1000})}
IDDPM = LINEAR | {"schedule": ("cosine", {"steps": 4000})}
RELEASED = {
    "iddpm_cifar10": IDDPM | {"time": "index_rescaled"}, "iddpm_imagenet64": IDDPM | {"time": "index_rescaled"},
    "iddpm_imagenet64_cond": IDDPM, "adm_imagenet64": COSINE, "adm_imagenet128": LINEAR, "adm_imagenet256": LINEAR,
    "adm_imagenet512": LINEAR, "adm_lsun256": LINEAR, "adm_t2i_64": COSINE, "adm_upsample_64_256": LINEAR,
    "adm_upsample_128_512": LINEAR,
}  # fmt: skip


def convert(state, arguments):
    """The state dict of our ADM from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network, whose num_res_blocks says where in their flat lists a level ends. Rows of q, k, v
    stay as they are: the network's qkv_order says how they lie.
    """
    result, blocks = {}, arguments["num_res_blocks"]
    for name, tensor in state.items():
        if name.startswith(TEXT_ENCODER):
            continue
        name = ENTRY.sub(lambda found: place(*found.groups(), blocks), name)
        for theirs, ours in LEAVES:
            name = re.sub(theirs, ours, name)
        one_by_one = tensor.ndim == 3 and tensor.shape[2] == 1  # of a one-dimensional convolution: a linear map here
        result[name] = tensor[:, :, 0] if one_by_one else tensor
    return result


def place(part, n, member, leaf, blocks):
    """Where the weights `leaf` of entry n of one of their flat lists are in ours; member 0 of an entry is the block."""
    n, attends = int(n), "attention." if leaf in ATTENTION else ""
    if part == "middle_block":  # block, attention, block
        return f"encoder.middle.{n // 2}.{attends}"
    if part == "output_blocks":
        level, i = divmod(n, blocks + 1)
        resamples = member != "0" and not attends  # the last member of a level's last entry
        return f"up.{level}.resample." if resamples else f"up.{level}.blocks.{i}.{attends}"
    if n == 0:
        return "encoder.conv_in."
    level, i = divmod(n - 1, blocks + 1)
    return f"encoder.down.{level}.resample." if i == blocks else f"encoder.down.{level}.blocks.{i}.{attends}"


def arguments(config):
    """The arguments of our ADM from those of UNetModel, with `super_resolution` True for those of SuperResModel.

    What is left out has its default there. Raises ValueError for an argument that our network has no equal of.
    """
    config = dict(config)
    for key, value in REQUIRED.items():
        if config.pop(key, value) != value:
            raise ValueError(f"{key} of the official U-Net must be {value}: ours has no other")
    unknown = sorted(set(config) - {*SAME, *RENAMED, *OURS, *IGNORED})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not arguments of the official U-Net that ours knows; leave them out")
    size = config.get("image_size", DEFAULTS["image_size"])
    text = {"text_dim": config["xf_width"], "pooled_dim": config["xf_width"]} if config.get("xf_width") else {}
    return {
        **DEFAULTS,
        **{key: config[key] for key in SAME if key in config},
        **{ours: config[theirs] for theirs, ours in RENAMED.items() if theirs in config},
        **text,
        "image_size": size,
        "attn_resolutions": [size // factor for factor in config["attention_resolutions"]],
        "channel_mult": config.get("channel_mult", (1, 2, 4, 8)),
        "num_classes": config.get("num_classes") or 0,
        "null_label": False,
        "num_head_channels": max(0, config.get("num_head_channels", 0)),
        "qkv_order": "new" if config.get("use_new_attention_order") else "legacy",
        "super_resolution": config.get("super_resolution", False),
    }
