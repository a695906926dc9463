"""How fast our U-Nets and Swin blocks are beside those of diffusers and timm: `python benchmarks/unet_speed.py`.

ddpm_cifar10 and ddpm_tiny: the U-Net of DDPM at both sizes beside diffusers' UNet2DModel. adm_32 and adm_tiny: ADM's
U-Net beside a UNet2DModel with resnet_time_scale_shift="scale_shift" and resampling in residual blocks; no published
ADM is small enough to be timed here, so the larger has ADM's parts and improved DDPM's widths for CIFAR-10.
swin and swin_shifted: four blocks on maps (28, 28, 192), the second stage of Swin-T, beside timm's
SwinTransformerBlock, all with windows as they stand or all shifted.

Both sides have the same weights, and what is timed and how is said in transformer_speed.py. "train_own" is left out:
the optimiser is not what differs here.

Writes benchmarks/unet_speed.json.
"""

import functools
import os
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformer_speed
from torch import nn
from transformer_speed import Pair

from minidiff import create_model
from minidiff.backbones.swin import SwinBlock
from minidiff.official import ddpm

TARGETS = {  # theirs / ours, at least
    "ddpm_cifar10": {"forward": 1.05, "train": 1.0},
    "ddpm_tiny": {"forward": 1.05, "train": 1.0},
    "adm_32": {"forward": 1.0, "train": 1.0},
    "adm_tiny": {"forward": 1.0, "train": 1.0},
    "swin": {"forward": 1.0, "train": 1.0},
    "swin_shifted": {"forward": 1.0, "train": 1.0},
}
UP = {  # what stands on diffusers' way up beside each kind of block on its way down
    "DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D", "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
}  # fmt: skip
ADM_RENAMES = [  # ours in the U-Net of DDPM -> ours in ADM
    (r"^time_dense0\.", "time_embed.0."),
    (r"^time_dense1\.", "time_embed.2."),
    (r"^(conv_in|down|middle)\.", r"encoder.\1."),
    (r"\.time\.", ".emb."),
]


def unet(batch, smoke, *, name):
    """The U-Net of DDPM of this name without dropout, and diffusers' with its weights."""
    from diffusers import UNet2DModel

    network = create_model("ddpm_test" if smoke else name, dropout=0.0)
    options = network.arguments
    sizes = [options["image_size"] // 2**level for level in range(len(options["ch_mult"]))]
    kinds = ["AttnDownBlock2D" if size in options["attn_resolutions"] else "DownBlock2D" for size in sizes]
    peer = UNet2DModel(
        sample_size=options["image_size"], block_out_channels=[options["ch"] * mult for mult in options["ch_mult"]],
        layers_per_block=options["num_res_blocks"], norm_num_groups=options["num_groups"],
        down_block_types=kinds, up_block_types=[UP[kind] for kind in reversed(kinds)],
        **ddpm.REQUIRED,
    )  # fmt: skip
    network.load_state_dict(ddpm.convert(peer.state_dict()))
    return pair_of(network, peer, batch, sizes[0])


def adm(batch, smoke, *, name, **overrides):
    """ADM's U-Net of this name without dropout, and diffusers' with its weights."""
    from diffusers import UNet2DModel

    smaller = {"channel_mult": (1, 2), "num_res_blocks": 1} if smoke else {}
    network = create_model(name, dropout=0.0, **overrides, **smaller)
    options = network.arguments
    sizes = [options["image_size"] // 2**level for level in range(len(options["channel_mult"]))]
    kinds = ["AttnDownBlock2D" if size in options["attn_resolutions"] else "ResnetDownsampleBlock2D" for size in sizes]
    widths = [options["model_channels"] * mult for mult in options["channel_mult"]]
    peer = UNet2DModel(
        sample_size=options["image_size"], block_out_channels=widths, layers_per_block=options["num_res_blocks"],
        down_block_types=kinds, up_block_types=[UP[kind] for kind in reversed(kinds)],
        norm_num_groups=32, attn_norm_num_groups=32, attention_head_dim=options["num_head_channels"],
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    state = {}
    for key, tensor in ddpm.convert(peer.state_dict()).items():
        for theirs, ours in ADM_RENAMES:
            key = re.sub(theirs, ours, key)
        state[key] = tensor
    network.load_state_dict(state)
    return pair_of(network, peer, batch, sizes[0])


def pair_of(network, peer, batch, size):
    """A U-Net and its peer that has the same weights."""
    inputs = torch.randn(batch, 3, size, size), torch.linspace(0, 999, batch).long()
    run = {"minidiff": network, "diffusers": lambda x, time: peer(x, time, return_dict=False)[0]}
    return Pair({"minidiff": network, "diffusers": peer}, run, inputs, torch.randn(batch, 3, size, size))


def swin(batch, smoke, *, shift):
    """Swin blocks, and timm's with their weights, whose names are the same."""
    from timm.models.swin_transformer import SwinTransformerBlock

    dim, heads, side, depth = (24, 3, 14, 1) if smoke else (192, 6, 28, 4)
    network = nn.Sequential(*(SwinBlock(dim, heads, (side, side), 7, shift) for _ in range(depth)))
    peer = nn.Sequential(*(
        SwinTransformerBlock(dim, (side, side), num_heads=heads, window_size=7, shift_size=shift) for _ in range(depth)
    ))  # fmt: skip
    left = peer.load_state_dict(network.state_dict(), strict=False)
    assert not left.unexpected_keys and all(key.endswith("_mask") for key in left.missing_keys), left
    modules = {"minidiff": network, "timm": peer}
    return Pair(modules, modules, (torch.randn(batch, side, side, dim),), torch.randn(1))


PAIRS = {
    "ddpm_cifar10": functools.partial(unet, name="ddpm_cifar10"),
    "ddpm_tiny": functools.partial(unet, name="ddpm_tiny"),
    "adm_32": functools.partial(adm, name="iddpm_cifar10", resblock_updown=True, num_head_channels=64,
                                qkv_order="new", out_channels=3),
    "adm_tiny": functools.partial(adm, name="adm_tiny", model_channels=32, group_width=1),
    "swin": functools.partial(swin, shift=0),
    "swin_shifted": functools.partial(swin, shift=3),
}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformer_speed.main(description=__doc__, out=Path(__file__), pairs=PAIRS, targets=TARGETS)
