"""ADM's noisy classifier (Dhariwal and Nichol 2021, section 4), equal to the official one on the same weights.

The way down and the middle of ADM's U-Net, which know the time, then a pool to logits. In all published ones that is
attention: the mean of all places asks the places (Radford et al. 2021, section 2.3). The official code offers the other
three. Its gradient guides a diffusion model on the same schedule: scorers.Classifier, guidance.gradient_of.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.adm import Encoder
from minidiff.backbones.adm_blocks import (
    TimeEmbedding,
    group_norm,
    heads_of,
    levels_of,
    split_heads,
    zeroed,
)
from minidiff.backbones.registry import register_model
from minidiff.errors import unknown_name
from minidiff.layers import attention, check_halving, check_images, merge_heads

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048  # width of the spatial pools' hidden layer


class ADMClassifier(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,) in 0 .. T-1 -> logits (B, num_classes).

    pool: "attention", whose positions fix H and W to image_size; "adaptive", the mean over all places; "spatial" and
    "spatial_v2", an MLP on the means of the maps of all blocks. The other arguments are those of `ADM`.
    `network.checkpoint = True` spares memory in training, see layers.run. Raises ValueError for an unknown pool.
    """

    checkpoint = False

    def __init__(
        self, image_size=64, in_channels=3, num_classes=1000, model_channels=128, channel_mult=(1, 2, 3, 4),
        num_res_blocks=4, attn_resolutions=(32, 16, 8), dropout=0.0, num_heads=4, num_head_channels=64,
        qkv_order="legacy", scale_shift_norm=True, resblock_updown=True, group_width=1, pool="attention",
    ):  # fmt: skip
        super().__init__()
        if pool not in POOLS:
            raise unknown_name("pool", pool, POOLS)
        self.shape, self.num_classes, self.pool = (in_channels, image_size, image_size), num_classes, pool
        levels = levels_of(image_size, model_channels, channel_mult, attn_resolutions)
        options = dict(
            emb=4 * model_channels, dropout=dropout, scale_shift_norm=scale_shift_norm, group_width=group_width,
            num_heads=num_heads, num_head_channels=num_head_channels, qkv_order=qkv_order, text_dim=0,
        )  # fmt: skip
        self.levels, c = len(levels), levels[-1][0]
        self.time_embed = TimeEmbedding(model_channels)
        self.encoder = Encoder(in_channels, levels, num_res_blocks, resblock_updown, options)
        if pool.startswith("spatial"):
            self.head = spatial_head(sum(self.encoder.kept) + c, num_classes, normed=pool == "spatial_v2")
            return
        self.norm_out = group_norm(c, group_width)
        if pool == "attention":
            places = (image_size // 2 ** (self.levels - 1)) ** 2
            self.head = AttentionPool(c, heads_of(c, num_heads, num_head_channels), places, num_classes)
        else:
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), zeroed(nn.Linear(c, num_classes)))

    def forward(self, x, time):
        if self.pool == "attention":
            check_images(x, self.shape)
        check_halving(x, self.shape[0], 2 ** (self.levels - 1), time)
        emb = F.silu(self.time_embed(time, x.dtype))
        h, kept = self.encoder(x, emb, checkpoint=self.checkpoint)
        if self.pool.startswith("spatial"):
            return self.head(torch.cat([m.mean((2, 3)) for m in [*kept, h]], dim=1))
        return self.head(F.silu(self.norm_out(h)))


class AttentionPool(nn.Module):
    """x (B, c, H, W) -> (B, out): the mean of all places asks them all and itself, by learned positions."""

    def __init__(self, c, heads, places, out):
        super().__init__()
        self.heads = heads
        self.pos_embed = nn.Parameter(torch.randn(1, places + 1, c) / c**0.5)
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, out)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)  # (B, H W, c)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.pos_embed
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads, "new")  # in this order even where the trunk is legacy
        return self.out(merge_heads(attention(q[:, :, :1], k, v))[:, 0])


def spatial_head(c, num_classes, normed):
    """The MLP of the spatial pools: a ReLU in between, or a group norm and SiLU."""
    middle = [nn.GroupNorm(32, HIDDEN), nn.SiLU()] if normed else [nn.ReLU()]
    return nn.Sequential(nn.Linear(c, HIDDEN), *middle, nn.Linear(HIDDEN, num_classes))


SIZES = {
    "64": dict(),
    "128": dict(image_size=128, channel_mult=(1, 1, 2, 3, 4), num_res_blocks=2),
    "256": dict(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2),
    "512": dict(image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), num_res_blocks=2),
    "test": dict(image_size=8, num_classes=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
                 attn_resolutions=(4,), num_head_channels=8, group_width=4),
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"adm_classifier_{size}", ADMClassifier, kind="classifier", **arguments)
