"""HiT (Zhao et al. 2021, "Improved Transformer for High-Resolution GANs"): pictures from a transformer, coarse to fine.

Between resolutions a map grows by pixel shuffle. At each, half of the heads attend inside blocks and the other half
across them, to the same place of every block: two cheap attentions see near and far. From some resolution on there is
none at all, only MLPs. What the picture shall be reaches every place by cross-attention: sixteen tokens made of the
latent are asked in each stage. This is a GAN's network, latent in, picture out, and equal to the official one on the
same weights (none were published):

    z -> map 8 x 8 -> | ask the tokens | attend in and across blocks | shuffle | ... | MLPs | RGB + twice the RGB so far
    z -> sixteen tokens ----^ in every stage

hit_denoiser.py makes a network for diffusion of these parts.

Differences from the paper: none.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.backbones.swin import join_windows, split_windows
from minidiff.errors import unknown_name
from minidiff.layers import Mlp, attention, check_sides, merge_heads, run, split_heads

ATTENTIONS = ("multi_query", "multi_head")  # whether all heads share one key and value


class MultiAxisAttention(nn.Module):
    """Tokens in blocks (B, blocks, N, dim) -> the same: half of the heads attend inside a block, half across blocks."""

    def __init__(self, dim, num_heads, attn_type):
        super().__init__()
        if num_heads % 2:
            raise ValueError(f"num_heads must be even where there are blocks, half for each axis; got {num_heads}")
        head_dim, self.shared = head_width(dim, num_heads), attn_type == "multi_query"
        self.head_dim, self.sizes = head_dim, [dim, *2 * [head_dim if self.shared else dim]]
        self.qkv, self.proj = nn.Linear(dim, sum(self.sizes)), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (part.unflatten(3, (-1, self.head_dim)) for part in self.qkv(x).split(self.sizes, dim=3))
        near, far = zip(q.chunk(2, dim=3), *((t, t) if self.shared else t.chunk(2, dim=3) for t in (k, v)))
        inside = attend_rows(*near)  # (B, blocks, N, heads / 2, d)
        across = attend_rows(*(t.transpose(1, 2) for t in far)).transpose(1, 2)
        return self.proj(torch.cat([inside, across], dim=3).flatten(3))


def attend_rows(q, k, v):
    """Attention along each row: q (B, rows, N, heads, d), k and v alike or of one head for all -> the shape of q."""
    batch = len(q)
    q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    return attention(q, k.expand_as(q), v.expand_as(q)).transpose(1, 2).unflatten(0, (batch, -1))


class LatentAttention(nn.Module):
    """Tokens (B, ..., ..., dim) ask the latent ones (B or 1, M, latent_dim), those that a mask (B, M) allows."""

    def __init__(self, dim, num_heads, attn_type, latent_dim):
        super().__init__()
        head_dim, self.num_heads = head_width(dim, num_heads), num_heads
        self.kv_heads = 1 if attn_type == "multi_query" else num_heads
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(latent_dim, 2 * self.kv_heads * head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, latent, mask=None):
        q = split_heads(self.q(x.flatten(1, 2)), self.num_heads)
        k, v = (split_heads(part, self.kv_heads).expand(len(x), self.num_heads, -1, -1)
                for part in self.kv(latent).chunk(2, dim=2))  # fmt: skip
        return self.proj(merge_heads(attention(q, k, v, mask)).view(x.shape))


class Block(nn.Module):
    """Attention, if any, and an MLP, each after a norm and with a residual."""

    def __init__(self, dim, attn, norm, dropout):
        super().__init__()
        self.attn, self.norm1 = attn, NORMS[norm](dim) if attn is not None else None
        self.norm2, self.mlp = NORMS[norm](dim), Mlp(dim, 4 * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, latent=None, mask=None):
        if self.attn is not None:
            h = self.norm1(x)
            x = x + self.dropout(self.attn(h) if latent is None else self.attn(h, latent, mask))
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    """A map (B, size, size, dim) -> the same: add positions, ask the latent tokens, then `depth` blocks.

    block_size: side of the blocks; None for blocks of layers without attention.
    """

    def __init__(self, size, dim, depth, num_heads, block_size, latent_dim, norm, attn_type, dropout):
        super().__init__()
        self.window = (block_size, block_size) if block_size else None
        self.positions = nn.Parameter(torch.empty(1, size, size, dim))
        self.cross = Block(dim, LatentAttention(dim, num_heads, attn_type, latent_dim), norm, dropout)
        self.blocks = nn.ModuleList(
            Block(dim, MultiAxisAttention(dim, num_heads, attn_type) if block_size else None, norm, dropout)
            for _ in range(depth)
        )

    def forward(self, x, latent, mask=None, checkpoint=False):
        batch, height, width, _ = x.shape
        x = x + self.positions
        if self.window:
            x = split_windows(x, self.window).unflatten(0, (batch, -1))  # (B, blocks, N, C)
        x = run(self.cross, x, latent, mask, checkpoint=checkpoint)
        for block in self.blocks:
            x = run(block, x, checkpoint=checkpoint)
        return join_windows(x.flatten(0, 1), self.window, height, width) if self.window else x


class LatentTokens(nn.Module):
    """A latent (B, latent_dim) -> the tokens that all places ask (B, tokens, dim)."""

    def __init__(self, latent_dim, tokens, dim, norm):
        super().__init__()
        self.dense = nn.Linear(latent_dim, tokens * dim)
        self.positions = nn.Parameter(torch.empty(1, tokens, dim))
        self.norm = NORMS[norm](dim)

    def forward(self, z):
        return self.norm(self.dense(z).view(len(z), *self.positions.shape[1:]) + self.positions)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of tokens (..., dim) over all but the channels, with the constants of the official code."""

    def __init__(self, dim):
        super().__init__(dim, eps=1e-3, momentum=0.01)

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view(x.shape)


class LayerNorm(nn.LayerNorm):
    """Layer norm with the epsilon of the official code."""

    def __init__(self, dim):
        super().__init__(dim, eps=1e-6)


NORMS = {"batch": BatchNorm, "layer": LayerNorm}


def pixel_shuffle(x):
    """(B, H, W, 4C) -> (B, 2H, 2W, C): channels are (row, column, C), as TensorFlow has them and torch does not."""
    return x.unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def pixel_unshuffle(x):
    """(B, 2H, 2W, C) -> (B, H, W, 4C), the inverse of `pixel_shuffle`."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3)


def add_rgb(picture, more):
    """more (B, H, W, 3) and the picture so far (B, 3, H / 2, W / 2), each pixel four times, or None -> (B, 3, H, W)."""
    more = more.permute(0, 3, 1, 2)
    return more if picture is None else more + F.interpolate(picture, scale_factor=2.0, mode="nearest")


class HiTGenerator(nn.Module):
    """z (B, latent_dim), unit Gaussian -> images (B, out_channels, img_size, img_size), not clamped.

    Of each stage, coarsest first, the size doubles between them: widths, depths (blocks), num_heads, and block_sizes,
    None for stages of MLPs only, the last ones; from the first of those on the picture is summed up.
    norm: "batch", with running statistics in eval mode, as published, or "layer". attn_type: "multi_query" (all heads
    share a key and a value) or "multi_head". `network.checkpoint = True` spares memory in training, see layers.run;
    a batch norm then counts each batch twice.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=128, out_channels=3, latent_dim=256, widths=(512, 512, 256, 128, 128), depths=(2, 2, 2, 2, 2),
        num_heads=(16, 8, 4, 4, 4), block_sizes=(4, 4, 8, 8, None), latent_tokens=16, norm="batch",
        attn_type="multi_query", dropout=0.0,
    ):  # fmt: skip
        super().__init__()
        sizes = stage_sizes(img_size, widths, depths, num_heads, block_sizes, attn_type=attn_type, norm=norm)
        self.shape, self.latent_dim = (out_channels, img_size, img_size), latent_dim
        self.dense = nn.Linear(latent_dim, sizes[0] ** 2 * widths[0])  # the first map
        self.latent = LatentTokens(latent_dim, latent_tokens, widths[0], norm)
        self.stages = nn.ModuleList()
        for i, level in enumerate(zip(sizes, widths, depths, num_heads, block_sizes)):
            stage = nn.ModuleDict({"tokens": Stage(*level, widths[0], norm, attn_type, dropout)})
            if None in block_sizes[: i + 1] or i == len(sizes) - 1:
                stage["rgb"] = nn.Sequential(NORMS[norm](widths[i]), nn.Linear(widths[i], out_channels))
            if i < len(sizes) - 1:
                stage["up"] = change(widths[i] // 4, widths[i + 1])
            self.stages.append(stage)
        init_weights(self)

    def forward(self, z):
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must be (B, {self.latent_dim}), one latent for each image; got {tuple(z.shape)}")
        latent, picture = self.latent(z), None
        x = self.dense(z).view(len(z), *self.stages[0]["tokens"].positions.shape[1:])  # (B, H, W, C)
        for stage in self.stages:
            x = stage["tokens"](x, latent, checkpoint=self.checkpoint)
            if "rgb" in stage:
                picture = add_rgb(picture, stage["rgb"](x))
            if "up" in stage:
                x = stage["up"](pixel_shuffle(x))
        return picture


def change(c_in, c_out):
    """A linear map of the channels; nothing where they are the same."""
    return nn.Identity() if c_in == c_out else nn.Linear(c_in, c_out)


def head_width(dim, num_heads):
    """How many channels a head has; ValueError if that is no whole number."""
    if dim % num_heads:
        raise ValueError(f"the width {dim} must be divisible by num_heads={num_heads}")
    return dim // num_heads


def stage_sizes(img_size, widths, depths, num_heads, block_sizes, *, attn_type, norm="layer"):
    """The side of the map in each stage, coarsest first; ValueError for what does not fit together."""
    if attn_type not in ATTENTIONS:
        raise unknown_name("attn_type", attn_type, ATTENTIONS)
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    for name, values in (("depths", depths), ("num_heads", num_heads), ("block_sizes", block_sizes)):
        if len(values) != len(widths):
            raise ValueError(f"{name} must have {len(widths)} values, as widths has, got {tuple(values)}")
    halvings = [2**level for level in reversed(range(len(widths)))]
    divisor = math.lcm(*(half * (block or 1) for half, block in zip(halvings, block_sizes)))
    blocks = ", ".join(map(str, block_sizes))
    check_sides(img_size, img_size, divisor, f"which blocks of {blocks} ask for, coarsest first")
    for width in widths[:-1]:
        if width % 4:
            raise ValueError(f"widths must be divisible by 4 where pixels are shuffled, got {tuple(widths)}")
    return [img_size // half for half in halvings]


def init_weights(network):
    """As the official code: small numbers in linear maps and positions, biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            cut_normal(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (Stage, LatentTokens)):
            cut_normal(layer.positions)


def cut_normal(weight):
    """Fill with N(0, 0.02^2), cut at two deviations."""
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)


SIZES = {
    "128": dict(),  # ImageNet, FID 30.8 without labels
    "256": dict(img_size=256, latent_dim=512, widths=(512, 512, 256, 128, 64, 64), depths=(2, 2, 2, 2, 1, 1),
                num_heads=(16, 8, 4, 4, 4, 4), block_sizes=(4, 4, 8, 8, None, None)),  # FFHQ, FID 2.95
    "1024": dict(img_size=1024, latent_dim=512, widths=(512, 512, 256, 128, 64, 64, 32, 32),
                 depths=(2, 2, 2, 2, 1, 1, 1, 1), num_heads=(16, 8, 4, 4, 4, 4, 4, 4),
                 block_sizes=(4, 4, 8, 8, None, None, None, None)),  # FFHQ, FID 6.37
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"hit_{size}", HiTGenerator, kind="generator", **arguments)
