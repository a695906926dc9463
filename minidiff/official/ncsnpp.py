"""NCSN++ and DDPM++: the state dicts of score_sde (Song et al. 2021) and of EDM (Karras et al. 2022) -> our NCSNpp's.

score_sde numbers its layers in the order in which it made them, so the numbers mean something only beside the sizes of
the network. Its checkpoints hold the weights of the last step under "model" and their average, which the paper
samples with, as a bare list under "ema"; the average is taken.

EDM names its layers by the size of the image there. Its files are pickles of whole programs, which nothing here reads:
beside EDM's code, torch.save(pickle.load(file)["ema"].state_dict(), "weights.pt") makes one that can be read. Its
preconditionings are known by `class_name`, as in EDM's own training options: EDMPrecond belongs to edm() and "edm",
VPPrecond to linear(None), "eps" and 999 t. VEPrecond is score_sde's VE network as it stands.
"""

import math
import re

import torch

from minidiff.errors import unknown_name

# One of our names, and for each published file what it was trained with; "network" is what ours is made by, if its name
# is not that of the file
MODEL = "ncsnpp_cifar10"
VE = {
    "schedule": ("variance_exploding", {"sigma_min": 0.01, "sigma_max": 50.0}), "prediction": "score", "time": "sigma",
    "value_range": (0.0, 1.0),
}  # fmt: skip
VP = {"schedule": ("linear", {"steps": None}), "prediction": "eps", "time": "999t"}
SUB_VP = VP | {"schedule": ("sub_vp", {})}
EDM = {"schedule": ("edm", {}), "prediction": "edm", "time": "log_sigma/4"}
DEEP, LABELS = {"num_res_blocks": 8}, {"num_classes": 10}
FACES = {"image_size": 64, "ch_mult": (1, 2, 2, 2)}
RELEASED = {
    "ncsnpp_cifar10": VE,
    "ncsnpp_cifar10_deep": VE | {"network": ("ncsnpp_cifar10", DEEP)},
    "ddpmpp_cifar10": VP,
    "ddpmpp_cifar10_deep": VP | {"network": ("ddpmpp_cifar10", DEEP)},
    "ddpmpp_cifar10_subvp": SUB_VP | {"network": ("ddpmpp_cifar10", {})},
    "ddpmpp_cifar10_deep_subvp": SUB_VP | {"network": ("ddpmpp_cifar10", DEEP)},
}
for body in ("edm_ncsnpp", "edm_ddpmpp"):
    RELEASED[f"{body}_cifar10"] = EDM
    RELEASED[f"{body}_cifar10_cond"] = EDM | {"network": (f"{body}_cifar10", LABELS)}
    for data in ("ffhq64", "afhqv2_64"):
        RELEASED[f"{body}_{data}"] = EDM | {"network": (f"{body}_cifar10", FACES)}

# Inside a layer: theirs -> ours
BLOCK = {
    "GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time", "GroupNorm_1": "norm2", "Conv_1": "conv2",
    "Conv_2": "shortcut", "NIN_0": "shortcut",
}  # fmt: skip
ATTENTION = {"GroupNorm_0": "norm", "NIN_0": "q", "NIN_1": "k", "NIN_2": "v", "NIN_3": "out"}
CONV, IMAGE = {"Conv_0": "conv"}, {"Conv2d_0": "1"}
EDM_BLOCK = {
    "norm0": "norm1", "conv0": "conv1", "affine": "time", "norm1": "norm2", "conv1": "conv2", "skip": "shortcut",
    "norm2": "attention.norm", "qkv": "attention.qkv", "proj": "attention.out",
}  # fmt: skip
EDM_EMBEDDING = {
    "map_noise": "embed.frequencies", "map_layer0": "embed.dense0", "map_layer1": "embed.dense1",
    "map_label": "embed.label", "map_augment": "embed.augment",
}  # fmt: skip


def convert(state, arguments):
    """The state dict of our NCSNpp from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network; they say what score_sde's numbers and EDM's sizes stand for.
    """
    if "model" in state and "ema" in state:  # a checkpoint of score_sde
        state = averaged(state)
    state = {name.removeprefix("module.").removeprefix("model."): tensor for name, tensor in state.items()}
    if any(name.startswith("all_modules.") for name in state):
        return from_score_sde(state, arguments)
    return from_edm(state, arguments)


def averaged(checkpoint):
    """The state dict under "model" with the averages of "ema" in place of what was trained."""
    state, average = dict(checkpoint["model"]), checkpoint["ema"]["shadow_params"]
    fixed = ("sigmas", "all_modules.0.W")  # the table of noise levels and the random frequencies
    trained = [name for name in state if not name.endswith(fixed)]
    if len(trained) != len(average):
        raise ValueError(f'"ema" has {len(average)} averages for {len(trained)} weights: the file is not score_sde\'s')
    return state | dict(zip(trained, average))


def from_score_sde(state, arguments):
    """{all_modules.number.inside.kind: tensor} -> {our name: tensor}."""
    known, result = list(layers(arguments)), {}
    for name, tensor in state.items():
        if not name.startswith("all_modules."):
            continue  # sigmas, the table of noise levels: what its schedule says
        number, *inside, kind = name.removeprefix("all_modules.").split(".")
        place, names = known[int(number)] if int(number) < len(known) else (f"layer {number}", {})
        place = ".".join([place, *(names.get(part, part) for part in inside)])
        if inside and kind == "W":  # a linear map of every pixel, (input, output)
            tensor, kind = tensor.T, "weight"
            tensor = tensor[:, :, None, None] if place.endswith("shortcut") else tensor
        result[place if kind == "W" else f"{place}.{'bias' if kind == 'b' else kind}"] = tensor
    for name in [name for name in result if name.endswith(("attention.q.weight", "attention.q.bias"))]:
        parts = [result.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        result[name.replace(".q.", ".qkv.")] = torch.cat(parts)  # one below the other they are one linear map
    return result


def layers(arguments):
    """Our layers in the order of score_sde's numbers, each with the names of what is inside."""
    levels, blocks = len(arguments["ch_mult"]), arguments["num_res_blocks"]
    resample = BLOCK if arguments["resblock_type"] == "biggan" else CONV
    attends = [arguments["image_size"] // 2**level in arguments["attn_resolutions"] for level in range(levels)]
    if arguments["embedding"] == "fourier":
        yield "embed.frequencies", {}
    yield from ((name, {}) for name in ("embed.dense0", "embed.dense1", "conv_in"))
    for level in range(levels):
        for i in range(blocks):
            yield f"down.{level}.blocks.{i}", BLOCK
            if attends[level]:
                yield f"down.{level}.blocks.{i}.attention", ATTENTION
        if level < levels - 1:
            yield f"down.{level}.resample", resample
            if arguments["progressive_input"] == "residual":
                yield f"down.{level}.image", IMAGE
    yield from (("middle.0", BLOCK), ("middle.0.attention", ATTENTION), ("middle.1", BLOCK))
    for i, level in enumerate(reversed(range(levels))):
        yield from ((f"up.{i}.blocks.{j}", BLOCK) for j in range(blocks + 1))
        if attends[level]:
            yield f"up.{i}.blocks.{blocks}.attention", ATTENTION
        if level:
            yield f"up.{i}.resample", resample
    yield from (("norm_out", {}), ("conv_out", {}))


def from_edm(state, arguments):
    """{enc.32x32_block0.inside.kind: tensor} -> {our name: tensor}."""
    levels, result = len(arguments["ch_mult"]), {}
    for name, tensor in state.items():
        if name.endswith(".resample_filter") or name == "u":
            continue  # fixed: the filter, and iDDPM's table of noise levels
        if "." not in name:  # not EDM's: whoever loads it says so
            result[name] = tensor
            continue
        layer, *inside, kind = re.sub(r"^(enc|dec)\.", "", name).split(".")
        place = EDM_EMBEDDING.get(layer) or edm_layer(layer, name[:3], arguments["image_size"], levels)
        place = ".".join([place, *(EDM_BLOCK.get(part, part) for part in inside)])
        if place.endswith("attention.qkv"):  # q, k, v of a channel beside each other -> below each other
            tensor = tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
        if place.endswith(("attention.qkv", "attention.out")):
            tensor = tensor.flatten(1) if kind == "weight" else tensor
        result[place if kind == "freqs" else f"{place}.{kind}"] = tensor
    return result


def edm_layer(layer, way, image_size, levels):
    """The name of our layer for EDM's, such as 16x16_block0 on the way "enc" or "dec"."""
    if not (found := re.fullmatch(r"(\d+)x\1_([a-z_]+?)(\d*)", layer)):
        return layer
    size, kind, i = found.groups()
    level = int(math.log2(image_size / int(size)))
    stage = f"down.{level}" if way == "enc" else f"up.{levels - 1 - level}"
    return {
        "conv": "conv_in", "in": f"middle.{i}", "aux_norm": "norm_out", "aux_conv": "conv_out",
        "down": f"down.{level - 1}.resample", "aux_residual": f"down.{level - 1}.image.1",
        "up": f"up.{levels - 2 - level}.resample",
    }.get(kind, f"{stage}.blocks.{i}")  # fmt: skip


# The arguments of score_sde that ours has, by the same name, and what a config must say if it says it at all
SAME = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "fir", "progressive_input", "resblock_type",
        "skip_rescale", "scale_by_sigma")  # fmt: skip
REQUIRED = {
    "progressive": "none", "fir_kernel": (1, 3, 3, 1), "nonlinearity": "swish", "resamp_with_conv": True,
    "conditional": True, "normalization": "GroupNorm", "conv_size": 3,
}  # fmt: skip
DDPM = dict(resblock_type="ddpm", skip_rescale=False, fir=False, progressive_input="none", group_width=1)
# Those of EDM's SongUNet and of the preconditioning around it, with their defaults; what nothing here depends on
EDM_DEFAULTS = dict(
    img_resolution=32, in_channels=3, out_channels=3, label_dim=0, augment_dim=0, model_channels=128,
    channel_mult=(1, 2, 2, 2), num_blocks=4, attn_resolutions=(16,), dropout=0.1, embedding_type="positional",
    encoder_type="standard", resample_filter=(1, 1), class_name="EDMPrecond",
)  # fmt: skip
EDM_REQUIRED = {"model_type": "SongUNet", "channel_mult_emb": 4, "decoder_type": "standard"}
EDM_IGNORED = ("use_fp16", "label_dropout", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M",
               "epsilon_t", "channel_mult_noise", "C_1", "C_2")  # fmt: skip


def arguments(config):
    """The arguments of our NCSNpp from a config of score_sde, {"data": ..., "model": ...}, or from those of EDM's code.

    score_sde's own DDPM network is known by its "model" "name", "ddpm"; EDM's preconditionings by "class_name".
    Raises ValueError for what our network has no equal of.
    """
    return score_sde_arguments(config) if isinstance(config.get("model"), dict) else edm_arguments(config)


def score_sde_arguments(config):
    model, data = {"name": "ncsnpp", **config["model"]}, config["data"]
    require(model, REQUIRED)
    if model["scale_by_sigma"] != (model["embedding_type"] == "fourier"):
        raise ValueError(
            f"embedding_type={model['embedding_type']!r} with scale_by_sigma={model['scale_by_sigma']}: ours has the"
            " networks of continuous time alone, Fourier features of sigma in the VE SDE and positional ones in others"
        )
    return {
        "image_size": data["image_size"], "in_channels": data["num_channels"], "out_channels": data["num_channels"],
        "centered": data["centered"], "embedding": model["embedding_type"], **{key: model[key] for key in SAME},
        **(DDPM if model["name"] == "ddpm" else {}),
    }  # fmt: skip


def edm_arguments(config):
    known = {*EDM_DEFAULTS, *EDM_REQUIRED, *EDM_IGNORED, "img_channels"}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"{', '.join(unknown)}: not arguments of EDM's SongUNet that ours knows; leave them out")
    require(config, EDM_REQUIRED)
    channels = {key: config["img_channels"] for key in ("in_channels", "out_channels") if "img_channels" in config}
    config = EDM_DEFAULTS | channels | config
    wrapper = config["class_name"].rpartition(".")[2]
    filters = {(1, 1): False, (1, 3, 3, 1): True}
    if tuple(config["resample_filter"]) not in filters:
        raise unknown_name("resample_filter", tuple(config["resample_filter"]), map(str, filters))
    return {
        "image_size": config["img_resolution"], "in_channels": config["in_channels"],
        "out_channels": config["out_channels"] * (2 if wrapper == "iDDPMPrecond" else 1),  # beside eps a variance
        "nf": config["model_channels"], "ch_mult": config["channel_mult"], "num_res_blocks": config["num_blocks"],
        "attn_resolutions": config["attn_resolutions"], "dropout": config["dropout"],
        "embedding": {"positional": "positional_edm"}.get(config["embedding_type"], config["embedding_type"]),
        "fir": filters[tuple(config["resample_filter"])],
        "progressive_input": {"standard": "none"}.get(config["encoder_type"], config["encoder_type"]),
        "num_classes": config["label_dim"], "augment_dim": config["augment_dim"],
        "scale_by_sigma": wrapper == "VEPrecond", "centered": wrapper != "VEPrecond",
    }  # fmt: skip


def require(config, values):
    for key, value in values.items():
        given = tuple(config[key]) if isinstance(config.get(key), list) else config.get(key, value)
        if given != value:
            raise ValueError(f"{key}={given!r}: ours is the network with {value!r}; its weights would give nonsense")
