"""Swin transformer blocks (Liu et al. 2021, "Swin Transformer"), equal to timm's and Microsoft's on the same weights.

Attention inside windows costs what the image has pixels, not their square. Every second block shifts the windows by
half their size, so that neighbours meet; a mask keeps apart what only the cyclic shift has brought together. Between
resolutions `PatchMerging` joins four tokens into one, and `PatchExpanding` (Cao et al. 2021, "Swin-Unet") undoes it.
Images are maps of tokens (B, H, W, C) here. ASCEND (ascend.py) is made of these blocks.

Differences from the paper: none.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.layers import Mlp, attention, merge_heads


class SwinBlock(nn.Module):
    """Tokens (B, H, W, dim) -> the same: windowed attention and an MLP, each after a norm and with a residual.

    resolution: (H, W). Where a side is no longer than window_size, the window is that side and is not shifted there;
    a side that is not a multiple is padded with zeros at its end, which take part as any token.
    emb_dim: width of a vector that shifts and scales both norms, `forward(x, emb (B or 1, emb_dim))`; 0 for none.
    """

    def __init__(self, dim, num_heads, resolution, window_size=8, shift=0, mlp_ratio=4.0, emb_dim=0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, resolution, window_size, shift)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.modulation = nn.Linear(emb_dim, 4 * dim) if emb_dim else None

    def forward(self, x, emb=None):
        if self.modulation is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        shift1, scale1, shift2, scale2 = self.modulation(emb)[:, None, None].chunk(4, dim=3)
        x = x + self.attn(torch.addcmul(shift1, self.norm1(x), 1 + scale1))
        return x + self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))


class WindowAttention(nn.Module):
    """Self-attention of tokens (B, H, W, dim) inside windows, shifted ones if `shift`, with a bias by distance."""

    def __init__(self, dim, num_heads, resolution, window_size, shift):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} must be divisible by num_heads={num_heads}")
        if not 0 <= shift < window_size:
            raise ValueError(f"shift must be in 0 .. window_size - 1 = {window_size - 1}, got {shift}")
        self.num_heads, self.resolution = num_heads, tuple(resolution)
        self.window = tuple(min(side, window_size) for side in resolution)
        self.shift = tuple(shift if side > window_size else 0 for side in resolution)
        self.pad = tuple(-side % w for side, w in zip(resolution, self.window))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        places = math.prod(2 * w - 1 for w in self.window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(places, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_index(self.window), persistent=False)  # (N, N)
        padded = tuple(side + more for side, more in zip(resolution, self.pad))
        self.register_buffer("mask", shift_mask(padded, self.window, self.shift), persistent=False)  # (windows, N, N)

    def forward(self, x):
        if x.shape[1:3] != self.resolution:
            raise ValueError(f"tokens must be (B, {self.resolution[0]}, {self.resolution[1]}, C), the resolution that"
                             f" the windows were laid out for; got {tuple(x.shape)}")  # fmt: skip
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        if any(self.pad):
            x = F.pad(x, (0, 0, 0, self.pad[1], 0, self.pad[0]))
        height, width = x.shape[1:3]
        windows = split_windows(x, self.window)  # (B * windows, N, C)
        q, k, v = self.qkv(windows).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        windows = self.proj(merge_heads(attention(q, k, v, self.bias(len(x)))))
        x = join_windows(windows, self.window, height, width)
        x = x[:, : self.resolution[0], : self.resolution[1]] if any(self.pad) else x
        return x.roll(self.shift, (1, 2)) if any(self.shift) else x

    def bias(self, batch):
        """What is added to the logits, (1 or B * windows, heads, N, N): the bias by distance, -100 across a seam."""
        bias = self.relative_position_bias_table[self.index.flatten()]  # (N * N, heads)
        bias = bias.T.unflatten(1, self.index.shape)  # (heads, N, N)
        if not any(self.shift):
            return bias[None]
        return (bias + self.mask[:, None]).expand(batch, -1, -1, -1, -1).flatten(0, 1)


def split_windows(x, window):
    """(B, H, W, C) -> (B * windows, N, C): the windows of an image row by row, and so the tokens of a window."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, rows, wh, columns, ww, C)
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def join_windows(x, window, height, width):
    """(B * windows, N, C) -> (B, height, width, C), the inverse of `split_windows`."""
    x = x.unflatten(1, window).unflatten(0, (-1, height // window[0], width // window[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_index(window):
    """For tokens i, j of a window (h, w), the row of the bias table that belongs to their distance: (N, N)."""
    h, w = window
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)


def shift_mask(resolution, window, shift):
    """0 for tokens of a window that were neighbours before the shift, -100 for the others: (windows, N, N)."""
    regions = [
        torch.bucketize(torch.arange(side), torch.tensor([side - w, side - s]), right=True) if s else torch.zeros(side)
        for side, w, s in zip(resolution, window, shift)
    ]
    region = 3 * regions[0][:, None] + regions[1]  # (H, W)
    region = region.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2).flatten(2).flatten(0, 1)
    return (region[:, :, None] != region[:, None]) * -100.0


class PatchMerging(nn.Module):
    """(B, H, W, dim) -> (B, H/2, W/2, out_dim), twice `dim` unless given: four neighbours become one token.

    Odd sides are padded with zeros at their end.
    """

    def __init__(self, dim, out_dim=None):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim or 2 * dim, bias=False)

    def forward(self, x):
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, row, w, column, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class PatchExpanding(nn.Module):
    """(B, H, W, dim) -> (B, 2H, 2W, out_dim), half of `dim` unless given: one token becomes four neighbours."""

    def __init__(self, dim, out_dim=None):
        super().__init__()
        self.expand = nn.Linear(dim, 4 * (out_dim or dim // 2), bias=False)
        self.norm = nn.LayerNorm(out_dim or dim // 2)

    def forward(self, x):
        x = self.expand(x).unflatten(3, (2, 2, -1))  # (B, H, W, row, column, C)
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))
