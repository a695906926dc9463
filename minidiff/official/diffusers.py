"""To diffusers and back: a folder that its own classes load, with the same numbers, and our Diffusion from such a one.

What diffusers can say of ours is the U-Net of DDPM (`UNet2DModel`, with labels or without) on a discrete schedule
(`DDIMScheduler`, `DDPMScheduler`). Its key map is that of ddpm.py, looked up backwards. The others are refused: most
have no class there, and what comes near is not the same. Its `DiTTransformer2DModel` divides the exponents of the
time's frequencies by 127 where DiT's own code divides by 128, which no choice of weights makes up for.

`minidiff.sample(diffusion, steps=N)` and `DDIMPipeline(num_inference_steps=N, use_clipped_model_output=True)` walk the
same path where N divides the steps of the schedule. Without the last argument that pipeline clips x0 but not eps.
"""

import json
import re
from itertools import product
from pathlib import Path

from minidiff.checkpoints import describe, load_weights
from minidiff.errors import unknown_name
from minidiff.official import ddpm
from minidiff.official.diffusers_schedule import SCHEDULERS, WRITTEN_FOR, read_scheduler, scheduler_config
from minidiff.official.loading import _read_official, _weights_file
from minidiff.safe_files import write_tensors, write_text

WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFERENT = {  # families that look as if they fitted
    "dit": "DiTTransformer2DModel feeds the time through other frequencies (exponents over 127, not 128)",
    "sit": "diffusers has no class for it",
}


def export_diffusers(diffusion, folder, scheduler=None):
    """Write a Diffusion as a folder for diffusers: unet/, scheduler/, and model_index.json where a pipeline fits it.

    diffusion  on a network ddpm_*, a discrete schedule, with prediction "eps", "x0" or "v" and time="index"
    scheduler  "ddim" (default) or "ddpm"; only "ddpm" reads a learned range, and is its default

    `DDIMPipeline.from_pretrained(folder)` or DDPMPipeline makes pictures of it. diffusers has no pipeline for a
    U-Net with labels or on latents: load its parts, UNet2DModel.from_pretrained(folder, subfolder="unet") and
    DDIMScheduler.from_pretrained(folder, subfolder="scheduler"). The last label, num_classes, means none.
    Returns the folder. Raises ValueError for what diffusers cannot say, before anything is written.
    """
    folder, network = Path(folder), diffusion.network
    kind = scheduler or ("ddpm" if getattr(diffusion, "learned_range", False) else "ddim")
    if kind not in SCHEDULERS:
        raise unknown_name("scheduler", kind, SCHEDULERS)
    config = unet_config(diffusion)
    steps = scheduler_config(diffusion, kind)
    tensors = to_unet2d(network.state_dict(), config)
    write_tensors(folder / "unet" / WEIGHTS, tensors, None)
    _write_json(folder / "unet" / "config.json", config)
    _write_json(folder / "scheduler" / "scheduler_config.json", steps)
    index = folder / "model_index.json"
    if config.get("num_class_embeds") is None and diffusion.latents is None:
        _write_json(index, {
            "_class_name": f"{SCHEDULERS[kind]}Pipeline", "_diffusers_version": WRITTEN_FOR,
            "scheduler": ["diffusers", steps["_class_name"]], "unet": ["diffusers", "UNet2DModel"],
        })  # fmt: skip
    else:
        index.unlink(missing_ok=True)  # of an earlier export: a pipeline that fails at its first step
    return folder


def from_diffusers(folder, device=None):
    """The Diffusion of a local folder of diffusers with a UNet2DModel of the DDPM kind, in eval mode.

    The folder is a pipeline's (unet/ and scheduler/), or has config.json, scheduler_config.json and the weights side by
    side, as google/ddpm-cifar10-32 has. Its clipping and timestep spacing belong to sampling: `minidiff.sample` has its
    own. Raises FileNotFoundError for a missing file, ValueError for another network or schedule.
    """
    from minidiff.backbones import create_model
    from minidiff.diffusion import Diffusion

    folder = Path(folder)
    config = _read_json(folder, "unet", "config.json")
    steps = _read_json(folder, "scheduler", "scheduler_config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{folder} holds a {config['_class_name']}; from_diffusers reads a UNet2DModel.")
    arguments = unet_arguments(config)
    schedule, prediction = read_scheduler(steps)
    network = create_model("ddpm_cifar10", **arguments)
    path = _weights_file(folder)
    state = {name.replace("class_embedding.", "label."): tensor for name, tensor in _read_official(path).items()}
    load_weights(network, ddpm.convert(state), path)
    size = config["sample_size"]
    shape = (config["in_channels"], *(size if isinstance(size, (list, tuple)) else (size, size)))
    learned = config["out_channels"] == 2 * config["in_channels"]
    own = config.get("_minidiff", {})
    diffusion = Diffusion(
        network, schedule, prediction, time="index", shape=shape, learned_range=learned, latents=own.get("latents")
    )
    return diffusion.to(device or "cpu").eval()


# --- the network -----------------------------------------------------------------------------------------------------


def unet_config(diffusion):
    """The config.json of the UNet2DModel that is the network of this Diffusion; ValueError if there is none."""
    name, arguments = _named(diffusion)
    size, (channels, *pixels) = arguments["image_size"], diffusion.shape
    attends = [size // 2**level in arguments["attn_resolutions"] for level in range(len(arguments["ch_mult"]))]
    classes = arguments["num_classes"]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": WRITTEN_FOR,
        **({} if diffusion.latents is None else {"_minidiff": {"latents": diffusion.latents}}),
        **ddpm.REQUIRED,
        "sample_size": pixels[0] if pixels[0] == pixels[1] else pixels,
        "in_channels": channels,
        "out_channels": arguments["out_channels"],
        "block_out_channels": [arguments["ch"] * factor for factor in arguments["ch_mult"]],
        "layers_per_block": arguments["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if attended else "DownBlock2D" for attended in attends],
        "up_block_types": ["AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(attends)],
        "norm_num_groups": arguments["num_groups"],
        "dropout": arguments["dropout"],
        "num_class_embeds": classes + 1 if classes else None,  # the last row is 'no label'
    }


def _named(diffusion):
    """Name and arguments of the network, ValueError unless it is a U-Net of DDPM."""
    from minidiff.backbones.unet import UNet

    described = describe(diffusion)["network"]
    name, arguments = described["name"], described["arguments"]
    if not isinstance(diffusion.network, UNet):
        family = name.split("_")[0]
        reason = DIFFERENT.get(family, "export_diffusers knows no class of diffusers that gives its numbers")
        raise ValueError(
            f"the network {name} cannot go to diffusers: {reason}. The ddpm_* networks can (ddpm_cifar10, "
            "ddpm_lsun256, ddpm_tiny, with any arguments); minidiff.sharing keeps and shares all others."
        )
    if arguments.get("text_dim"):
        raise ValueError(f"{name} with text_dim={arguments['text_dim']} cannot go to diffusers: its UNet2DModel hears "
                         "no text; minidiff.sharing keeps and shares it.")
    return name, arguments


def unet_arguments(config):
    """The arguments of our U-Net from the config of a UNet2DModel, with or without labels."""
    config = dict(config)
    size, rows = config.get("sample_size"), config.pop("num_class_embeds", None)
    if not isinstance(size, int):
        if not size:
            raise ValueError(f"sample_size={size!r}: write the size of its pictures into config.json, such as 32.")
        config["sample_size"] = max(size)  # our network needs it for the levels of attention alone
    kinds = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    unknown = sorted(kinds - {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"})
    other = {key: config[key] for key, own in OTHERS.items() if config.get(key, own) != own}
    if unknown or other:
        what = ", ".join([*unknown, *(f"{key}={value!r}" for key, value in other.items())])
        raise ValueError(f"{what}: this UNet2DModel is not the network of DDPM, which has no such parts.")
    arguments = ddpm.arguments(config)
    arguments["dropout"] = config.get("dropout", 0.0)
    if rows:
        arguments["num_classes"] = rows - 1
    return arguments


OTHERS = {  # arguments of UNet2DModel that ddpm.REQUIRED does not look at, and what DDPM has
    "add_attention": True, "class_embed_type": None, "attn_norm_num_groups": None, "time_embedding_dim": None,
    "downsample_type": "conv", "upsample_type": "conv", "mid_block_type": "UNetMidBlock2D",
}  # fmt: skip


def to_unet2d(state, config):
    """The state dict of a UNet2DModel from that of our U-Net: the inverse of ddpm.convert, looked up."""
    theirs = {_renamed(name): name for name in _unet2d_names(config)} | {"label.weight": "class_embedding.weight"}
    result = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            parts = [(name.replace(".qkv.", f".{letter}."), rows) for letter, rows in zip("qkv", tensor.chunk(3))]
        else:
            parts = [(name, tensor)]
        result |= {theirs[part]: rows.contiguous() for part, rows in parts}
    return result


def _renamed(name):
    for theirs, ours in ddpm.RENAMES:
        name = re.sub(theirs, ours, name)
    return name


def _unet2d_names(config):
    """Every name that a tensor of a UNet2DModel of this size can have, and some that none has."""
    levels, blocks = range(len(config["block_out_channels"])), range(config["layers_per_block"] + 1)
    residual = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
    attention = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    layers = ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in", "conv_norm_out", "conv_out"]
    places = [f"{side}_blocks.{level}" for side, level in product(("down", "up"), levels)] + ["mid_block"]
    for place, block in product(places, blocks):
        layers += [f"{place}.resnets.{block}.{layer}" for layer in residual]
        layers += [f"{place}.attentions.{block}.{layer}" for layer in attention]
    layers += [f"mid_block.resnets.1.{layer}" for layer in residual]
    layers += [f"{place}.{place.split('_')[0]}samplers.0.conv" for place in places[:-1]]
    return [f"{layer}.{part}" for layer, part in product(layers, ("weight", "bias"))]


# --- files -----------------------------------------------------------------------------------------------------------


def _write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def _read_json(folder, part, name):
    places = [folder / part / name, folder / name]
    for path in places:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is truncated or no JSON ({error}). Copy the folder again.") from error
    raise FileNotFoundError(
        f"there is neither {places[0]} nor {places[1]}: give the local folder of a pipeline, as its save_pretrained or "
        "export_diffusers writes it."
    )
