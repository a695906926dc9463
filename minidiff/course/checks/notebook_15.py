"""Checks of notebook 15: what windows save, merging as a convolution, a light decoder."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.swin import PatchMerging
from minidiff.course.exercises import compare, exercise


@exercise("with windows of one size the price grows with the number of pixels, no longer with its square.")
def check_pairs_in_windows(pairs_in_windows):
    for size, window in ((24, 4), (64, 8), (20, 8), (4, 8), (8, 8)):
        side = min(size, window)
        count = -(-size // side)
        right = count**2 * side**4
        mistakes = {
            "each window has window^2 tokens, and all pairs of these: window^4": count**2 * side**2,
            "that is one window; add up all of them": side**4,
            "windows lie in rows and in columns: their number is a square": count * side**4,
            "that is attention over the whole map": size**4,
            "a side that the window does not divide is padded, so round the number of windows up":
                (size // side) ** 2 * side**4,
            "the padded tokens are asked as any other": size**2 * side**2,
            "the last windows are full too: padded tokens ask and answer as any other":
                (size // side * side**2 + (size % side) ** 2) ** 2,
            "a map smaller than the window is one window of its own size": (-(-size // window)) ** 2 * window**4,
            "each pair counts twice: a may ask b, and b may ask a": right // 2,
        }
        compare(pairs_in_windows(size, window), right, mistakes, name=f"the count for {size} and {window}", rtol=0,
                atol=0.5)  # fmt: skip


@exercise("so a residual network with stride 2 and a Swin differ here by a norm, and by what overlaps.")
def check_conv_from_merge(conv_from_merge):
    for c, out in ((3, 2), (5, 4)):
        layer, x = PatchMerging(c, out), torch.randn(2, 6, 6, c)
        layer.norm = nn.Identity()
        weight = layer.reduction.weight.detach()
        blocks = weight.unflatten(1, (2, 2, c))  # (out, column, row, c)
        right = blocks.permute(0, 3, 2, 1)
        by_conv = F.conv2d(x.permute(0, 3, 1, 2), right, stride=2).permute(0, 2, 3, 1)
        assert torch.allclose(by_conv, layer(x), atol=1e-4)
        mistakes = {
            "rows and columns are exchanged: merging goes down the first column, then the second":
                blocks.permute(0, 3, 1, 2),
            "the channels change fastest in `weight`, and the neighbours slowest; you read it the other way round":
                weight.unflatten(1, (c, 2, 2)),
            "the channels change fastest in `weight`, and rows and columns are exchanged besides":
                weight.unflatten(1, (c, 2, 2)).transpose(2, 3),
            "the window is turned round: torch's convolution does not flip its weight": right.flip(2, 3),
            "the channels must come before row and column: (out, c, 2, 2)": blocks.transpose(1, 2),
            "you only cut the columns; the channels must come before row and column: (out, c, 2, 2)": blocks,
        }
        compare(conv_from_merge(weight), right, mistakes, name="the weight of the convolution")


class Unit(nn.Module):
    """A stand-in for a residual unit: twice the channels -> the channels, told an emb."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.emb = nn.Conv2d(2 * width, width, 3, padding=1), nn.Linear(4, width)

    def forward(self, joined, emb):
        if joined.shape[1] != self.conv.in_channels:
            raise ValueError(f"this unit wants {self.conv.in_channels} channels, what comes from below joined with "
                             f"the map of its own level; it got {joined.shape[1]}")  # fmt: skip
        return torch.tanh(self.conv(joined) + self.emb(emb)[:, :, None, None])


def up(width, out):
    """A stand-in for patch expanding."""
    return nn.Sequential(nn.Conv2d(width, out, 1), nn.Upsample(scale_factor=2))


@exercise("three skips in the place of nine maps: whether that is enough is what the project asks.")
@torch.no_grad()
def check_light_decode(light_decode):
    for widths in ((4, 4), (4, 6, 6), (3, 3, 3)):
        sizes = [8 // 2**level for level in range(len(widths))]
        units = [Unit(width) for width in widths]
        ups = [up(below, width) for width, below in zip(widths, widths[1:])]
        last = [torch.randn(2, width, size, size) for width, size in zip(widths, sizes)]
        h, emb = torch.randn(2, widths[-1], sizes[-1], sizes[-1]), torch.randn(2, 4)
        given = list(last), list(units), list(ups)  # lists of its own: an answer may empty them with pop()
        way = functools.partial(decode, h, last, units, ups, emb)
        mistakes = {
            "the skip comes second: join what comes from below, then the encoder's map": way(turned=True),
            "the skips are silent": way(heard=0.0),
            "the unit of level 0 is missing: it comes after the last step up": way(stop=1),
            "emb is missing: hand the units the emb that you are given": way(told=0.0),
        }
        compare(light_decode(h, *given, emb), way(), mistakes, name="the map")


def decode(h, last, units, ups, emb, turned=False, heard=1.0, told=1.0, stop=0):
    """The way up, or a way with one mistake."""
    for level in reversed(range(stop, len(units))):
        both = [h, heard * last[level]]
        h = units[level](torch.cat(both[::-1] if turned else both, dim=1), told * emb)
        if level:
            h = ups[level - 1](h)
    return h
